"""Near-duplicates and decontamination: speed, memory and quality, ours and datasketch's in one run.

    python -m bench.near --what speed|million|quality|contamination|all [--quick]
    REAL_DATA=../shared/data python -m bench.near --what contamination    # adds false alarms on real files

The records are written by a seeded generator from the phrases below, invented for this file: complaints, histories,
findings, reasoning and advice in Chinese and English, with the boilerplate that real records share. Each engine
runs in a process of its own and reads its records from a file, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from difflib import SequenceMatcher
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import opencc

from preprocess.contamination import Guard
from preprocess.near import (
    ROWS,
    SLOTS,
    THREADS,
    Forest,
    Index,
    N,
    Pair,
    as_text,
    batches,
    grams,
    key_of,
    keys_of,
    markers,
)
from preprocess.records import read_rows

THRESHOLD = 0.7
CHECKED = 5_000  # of the reported pairs, by Python's sets
TRADITIONAL = opencc.OpenCC("s2t")
SPARED = set("0123456789.⁹+-左右阳阴性")
Words = dict[str, list[str]]


def phrases(text: str, joint: str = "") -> Words:
    """`name: a|b|c` paragraphs, their lines joined, as lists by name."""
    named = (paragraph.partition(": ") for paragraph in text.strip().split("\n\n"))
    return {
        name: [item.strip() for item in joint.join(map(str.strip, rest.splitlines())).split("|")]
        for name, _, rest in named
    }


# Slots are filled from the lists of the same name; $n is a digit.
ZH = phrases("""
symptom: 发热|咳嗽|咳痰|胸闷|胸痛|气促|心悸|头痛|头晕|恶心|呕吐|腹痛|腹泻|便秘|便血|黑便|反酸|嗳气|乏力|消瘦|水肿|
    皮疹|瘙痒|关节肿痛|腰痛|背痛|尿频|尿急|尿痛|血尿|夜尿增多|口干|多饮|视物模糊|耳鸣|听力下降|鼻塞|流涕|咽痛|
    声音嘶哑|吞咽困难|盗汗|失眠|健忘|手足麻木|肢体无力|言语不清|抽搐|晕厥|月经紊乱|阴道流血|痛经|白带增多|乳房胀痛|
    颈部肿块|脱发|牙龈出血|鼻出血|下肢静脉曲张|跛行|晨僵

disease: 社区获得性肺炎|慢性阻塞性肺疾病|支气管哮喘|肺栓塞|肺结核|支气管扩张|稳定型心绞痛|急性心肌梗死|心房颤动|
    心力衰竭|原发性高血压|主动脉夹层|感染性心内膜炎|消化性溃疡|胃食管反流病|急性胰腺炎|胆囊结石|肝硬化|乙型病毒性肝炎|
    溃疡性结肠炎|克罗恩病|肠易激综合征|结肠癌|胃癌|急性阑尾炎|肾病综合征|急性肾盂肾炎|尿路结石|慢性肾脏病|前列腺增生|
    2型糖尿病|甲状腺功能亢进症|甲状腺功能减退症|库欣综合征|痛风|类风湿关节炎|系统性红斑狼疮|强直性脊柱炎|骨质疏松症|
    缺铁性贫血|巨幼细胞贫血|免疫性血小板减少症|急性白血病|淋巴瘤|脑梗死|脑出血|蛛网膜下腔出血|偏头痛|癫痫|帕金森病|
    阿尔茨海默病|重症肌无力|吉兰巴雷综合征|焦虑障碍|抑郁障碍|带状疱疹|银屑病|湿疹|荨麻疹|子宫肌瘤|子宫内膜异位症|
    多囊卵巢综合征|异位妊娠|子痫前期|乳腺增生|腰椎间盘突出症|颈椎病|股骨颈骨折|白内障|青光眼|过敏性鼻炎|慢性鼻窦炎|
    中耳炎

drug: 阿莫西林胶囊|头孢呋辛酯片|左氧氟沙星片|阿奇霉素片|布洛芬缓释胶囊|对乙酰氨基酚片|二甲双胍片|格列美脲片|
    阿卡波糖片|达格列净片|氨氯地平片|缬沙坦胶囊|美托洛尔缓释片|阿司匹林肠溶片|氯吡格雷片|阿托伐他汀钙片|
    瑞舒伐他汀钙片|华法林钠片|利伐沙班片|呋塞米片|螺内酯片|奥美拉唑肠溶胶囊|雷贝拉唑钠片|莫沙必利片|蒙脱石散|
    双歧杆菌活菌胶囊|左甲状腺素钠片|甲巯咪唑片|泼尼松片|甲氨蝶呤片|羟氯喹片|别嘌醇片|非布司他片|碳酸钙片|加巴喷丁胶囊|
    卡马西平片|丙戊酸钠片|舍曲林片|右佐匹克隆片|氯雷他定片|孟鲁司特钠片|布地奈德吸入剂|沙丁胺醇气雾剂|琥珀酸亚铁片|
    叶酸片|恩替卡韦片

test: 血常规|尿常规|粪便隐血|肝功能|肾功能|电解质|空腹血糖|糖化血红蛋白|血脂四项|凝血功能|D二聚体|肌钙蛋白|脑钠肽|
    甲状腺功能|肿瘤标志物|自身抗体谱|C反应蛋白|降钙素原|血培养|心电图|动态心电图|超声心动图|胸部CT|头颅磁共振|
    腹部超声|泌尿系超声|胃镜|肠镜|肺功能|骨密度|骨髓穿刺|脑脊液检查|肌电图|脑电图|冠状动脉造影|甲状腺超声|乳腺钼靶|
    宫颈液基细胞学|幽门螺杆菌呼气试验

organ: 头部|前额|颈部|左肩|右肩|胸骨后|左侧胸部|右侧胸部|上腹部|脐周|右下腹|左下腹|腰部|双膝|右膝|左踝|双手|双下肢|
    右足|后背

since: $n天|$n周|$n个月|$n年|半天|半个月|半年|一年多|十余天|数小时

trigger: 受凉后|劳累后|进食油腻食物后|饮酒后|情绪激动后|无明显诱因|剧烈运动后|熬夜后|外伤后|接触花粉后|搬重物后|
    停药后|感冒后|月经期|夜间平卧时|晨起时|久坐后|上楼时|空腹时|餐后

nature: 阵发性加重|持续不缓解|时轻时重|逐渐加重|休息后可缓解|夜间明显|活动后加重|反复发作|伴出汗|与体位有关|
    与呼吸有关|按压后加重

habit: 久坐|熬夜|吸烟|饮酒|高盐饮食|喜食辛辣|很少运动|工作压力大|睡眠不足|饮水少|三餐不规律|长期使用电脑

advice: 低盐低脂饮食|规律作息|戒烟限酒|每天快走半小时|多喝水|少食多餐|避免辛辣刺激|控制体重|监测血压|监测血糖|
    注意保暖|避免搬重物|保持情绪平稳|按时服药|不要自行停药|睡前不进食|补充优质蛋白|勤洗手|避免接触过敏原|适当晒太阳

drugdose: $drug每次$n片|$drug每日$n次|$drug$n0mg口服|$drug$n.$n克|$drug睡前$n粒

lab: 白细胞$n.$n×10⁹/L|血红蛋白1$n$ng/L|血小板2$n$n×10⁹/L|C反应蛋白$n$n.$nmg/L|血钾$n.$nmmol/L|血肌酐1$n$nμmol/L|
    尿酸4$n$nμmol/L|空腹血糖$n.$nmmol/L|糖化血红蛋白$n.$n%|总胆固醇$n.$nmmol/L|丙氨酸氨基转移酶$n$nU/L|
    促甲状腺激素$n.$nmIU/L|D二聚体0.$n$nmg/L|血压1$n$n/$n$nmmHg|心率$n$n次/分|体温3$n.$n℃|血氧饱和度9$n%

when: $since前$trigger|近$since来|大约$since以前开始|从$since前起|$trigger|上个月$trigger|昨天夜里|今年体检之后|
    孩子$since前|家里老人近$since|这$since|起病$since以来|患者于$since前$trigger|我$since前|入院前$since|产后$since|
    我爱人$trigger|小区里一位邻居$since前|术后$since|自从换了工作

what: 出现$organ$symptom|反复$symptom|觉得$organ不舒服，有些$symptom|$symptom一直没好|$symptom和$symptom交替出现|
    突然$symptom|$organ开始$symptom，$nature|$symptom，$nature|间断$symptom，伴$symptom|又$symptom了|总感到$symptom|
    $organ$symptom得睡不着|先是$symptom，后来$symptom|被家人发现$symptom|因$symptom去过急诊|$symptom一天好几回|
    $symptom比以前重

also: 没有$symptom|无$symptom、$symptom|同时$symptom|偶尔$symptom|夜里$symptom得厉害|饭量变小|睡眠还可以|大小便正常|
    体重下降$n公斤|精神差些|不敢用力|活动后更明显|$organ按着疼|平时$habit|父亲得过$disease|以前查出过$disease|
    对花粉过敏|还在喂奶|月经推迟$n天|下蹲时费劲|吃饭前后没有差别

did: 自己吃了$drug|在当地诊所输液$n天|吃$drug后稍好|没有看过医生|做过$test|按$disease治疗过|停了$drug|一直用$drugdose|
    换成$drugdose|热敷后缓解|去年做过手术|只喝了些中药|照医生说的用$drugdose|漏服过几次$drug

found: 查$test提示$lab|$test大致正常|$test还没出结果|复查$lab|$lab，$lab|外院$test报告有异常|入院时$lab|
    $test里最显眼的是$lab|两次$test结果不一致|门诊测得$lab|$organ压痛明显|$organ未触及包块|$test做完以后$lab

think: 首先想到$disease|$disease不能完全排除|这更像$disease而不是$disease|不太支持$disease|要警惕$disease|
    $symptom可以用$disease解释|不过$symptom放在$disease里有点牵强|这一步的关键是$test|我倾向于$disease|
    $disease和$disease都有可能|单凭$symptom下不了$disease的结论|$disease早期可以只有$symptom|
    $disease的患者常常$symptom|教科书上$disease多在$trigger发病|倒是$disease应该再查一查|题目给的线索指向$disease

because: 因为$lab|毕竟$trigger就$symptom|而且$test也吻合|从年龄和病程看|考虑到平时$habit|结合$test|再看$lab|
    前面提到$symptom|如果$test是阴性|假如$symptom持续$since|用药$since没有起色|单看$organ这个部位|回头核对$test

plan: 先做$test|必要时加做$test|$since后复查$test|可以用$drugdose|把$drug换成$drug|$drug要从小量开始|
    一旦$symptom马上去急诊|$advice|平时注意$advice|请专科会诊|暂时不用$drug|和家属讲清楚$drug可能引起$symptom|
    住院观察$n天|继续原来的治疗|$drug与$drug不要同时吃|营养科帮忙制定食谱

ask: 请问这是不是$disease？|需要做$test吗？|还能不能继续吃$drug？|要不要住院？|会遗传给孩子吗？|多久能好？|
    平时要注意什么？|$drug和$drug能一起吃吗？|最可能的诊断是什么？|下一步应当做什么检查？|首选的治疗是什么？|
    $disease患者能怀孕吗？|为什么会$symptom？|$disease和$disease怎么区分？

sentence: $when$what，$also，$also。|$when$what，$did，$also。|$when$what。|$found，$think。|$because，$think。|
    $think，$because，所以$plan。|嗯，$think，但是$because。|$plan，$plan。|$did，$found。|$when$what，$ask|
    $also，$ask|$ask|$think，$plan。|等等，$because，$think。|$plan，同时$plan，另外$plan。|$because，$plan。|
    $also，$also，$also。|综合起来，$think，$think。|$found，$found，$because，$think。

item: $when$what，$also，$also。$found，$ask|$when$what，$did，$also。$found。$ask|$what，$also，$found。$ask$ask|
    $n$n岁患者，$what，$also，$found。下列处理中最合适的是：$plan；$plan；$plan|$ask平时$habit，$did，$also。|
    关于$disease的治疗，下列说法正确的是：$think；$plan；$plan|$when$what，$found，$because，$think。$ask|
    $disease患者$when$what，$found。其可能的原因是：$disease；$disease；$drug的不良反应

boilerplate: 神志清楚，精神尚可，全身皮肤黏膜无黄染及出血点，浅表淋巴结未触及肿大，双肺呼吸音清，未闻及干湿啰音，
    心律齐，各瓣膜区未闻及病理性杂音，腹平软，无压痛及反跳痛。|
    否认肝炎、结核等传染病史，否认手术及外伤史，否认输血史，否认药物及食物过敏史，预防接种史按计划进行。|
    本人及共同居住人员近期未到过中高风险地区，未接触过发热或有呼吸道症状的患者，周围无聚集性发病，健康码为绿码。|
    以上内容仅供参考，不能代替面诊，具体用药请遵医嘱，如有不适请及时到正规医院就诊。|
    生于本地，久居本地，无疫区疫水接触史，无放射性物质及毒物接触史，无特殊嗜好，按时婚育，配偶体健。
""")
EN = phrases(
    """
symptom: fever|dry cough|productive cough|chest tightness|chest pain|shortness of breath|palpitations|headache|
    dizziness|nausea|vomiting|abdominal pain|watery diarrhea|constipation|bloody stools|heartburn|fatigue|weight loss|
    ankle swelling|an itchy rash|joint pain|low back pain|urinary frequency|painful urination|blood in the urine|
    blurred vision|ringing in the ears|a sore throat|hoarseness|difficulty swallowing|night sweats|insomnia|numbness
    of the hands|weakness of one arm|slurred speech|seizures|fainting|irregular periods|hair loss|easy bruising|
    morning stiffness|muscle cramps|cold intolerance|hand tremor

disease: community-acquired pneumonia|chronic obstructive pulmonary disease|asthma|pulmonary embolism|tuberculosis|
    stable angina|myocardial infarction|atrial fibrillation|heart failure|essential hypertension|aortic dissection|
    infective endocarditis|peptic ulcer disease|acute pancreatitis|gallstones|cirrhosis|hepatitis B|ulcerative
    colitis|Crohn disease|colon cancer|appendicitis|nephrotic syndrome|pyelonephritis|kidney stones|chronic kidney
    disease|type 2 diabetes mellitus|hyperthyroidism|hypothyroidism|Cushing syndrome|gout|rheumatoid arthritis|
    systemic lupus erythematosus|osteoporosis|iron deficiency anemia|immune thrombocytopenia|acute leukemia|lymphoma|
    ischemic stroke|subarachnoid hemorrhage|migraine|epilepsy|Parkinson disease|myasthenia gravis|multiple sclerosis|
    generalized anxiety disorder|major depression|psoriasis|endometriosis|ectopic pregnancy|preeclampsia|glaucoma|
    sarcoidosis|celiac disease|hemochromatosis|pheochromocytoma|primary hyperparathyroidism

drug: amoxicillin|levofloxacin|azithromycin|ibuprofen|acetaminophen|metformin|glimepiride|dapagliflozin|amlodipine|
    valsartan|metoprolol|aspirin|clopidogrel|atorvastatin|warfarin|rivaroxaban|furosemide|spironolactone|omeprazole|
    levothyroxine|methimazole|prednisone|methotrexate|hydroxychloroquine|allopurinol|febuxostat|gabapentin|
    carbamazepine|valproate|sertraline|loratadine|montelukast|budesonide|albuterol|lisinopril|hydrochlorothiazide

test: a complete blood count|urinalysis|liver enzymes|serum creatinine|serum electrolytes|fasting glucose|a lipid
    panel|a coagulation profile|a D-dimer|serial troponins|thyroid function tests|antinuclear antibodies|C-reactive
    protein|blood cultures|an electrocardiogram|an echocardiogram|a chest x-ray|CT of the chest|MRI of the brain|
    abdominal ultrasonography|an upper endoscopy|a colonoscopy|spirometry|a bone marrow biopsy|a lumbar puncture|
    electromyography|coronary angiography

since: $n days|$n weeks|$n months|$n years|several hours|half a year|the past year

trigger: after a cold|after heavy meals|after drinking alcohol|without any clear trigger|during exercise|after
    lifting a box|when lying flat|after stopping her medication|on climbing stairs|in the morning|at night|after a
    long flight|when fasting

nature: gets worse at night|comes and goes|does not improve with rest|is relieved by rest|has slowly worsened|keeps
    recurring

who: man|woman|boy|girl|farmer|nurse|teacher|retired miner|truck driver|student|pregnant woman|construction worker|
    office worker

habit: smokes|drinks wine every evening|rarely exercises|works night shifts|eats mostly fast food|sleeps poorly|
    travels often

advice: drink enough water|avoid salty food|stop smoking|walk half an hour a day|keep a blood pressure diary|take the
    tablets on time|avoid heavy lifting|eat smaller meals|avoid alcohol|keep a regular sleep schedule|have the
    vaccination completed

lab: hemoglobin 1$n.$n g/dL|leukocytes $n,$n00/mm3|platelets 2$n$n,000/mm3|sodium 13$n mmol/L|potassium $n.$n mmol/L|
    creatinine $n.$n mg/dL|glucose 1$n$n mg/dL|temperature 3$n.$n°C|pulse $n$n/min|blood pressure 1$n$n/$n$n mm Hg|
    CRP $n$n mg/L

case: A $n$n-year-old $who comes to the physician because of $symptom|A $n$n-year-old $who has had $symptom and
    $symptom for $since|A $who is brought to the emergency department with $symptom that began $trigger|For $since a
    $n$n-year-old $who has noticed $symptom|My father, who has $disease, developed $symptom $trigger|I am a
    $n$n-year-old $who with $symptom for $since|Two days after $test, a $who reports $symptom

more: the $symptom $nature|there has been no $symptom or $symptom|she takes $drug $n0 mg daily|he $habit|laboratory
    studies show $lab|examination reveals $symptom|$test shows no abnormality|a sister was treated for $disease|$lab
    was found at admission|the symptoms started $trigger|$drug gave little relief|appetite and sleep are unchanged

think: this could be $disease|$disease would usually cause $symptom as well|$disease often presents $trigger|$lab
    points towards $disease|$symptom alone does not prove $disease|I would rather suspect $disease than $disease|
    $disease fits the timing|$test argues against $disease|nothing here suggests $disease|the key step is $test|what
    links $symptom with $symptom is $disease|$disease remains possible

plan: order $test|repeat $test after $since|start $drug $n0 mg twice a day|stop $drug|replace $drug with $drug|
    $advice|watch for $symptom|discuss that $drug may cause $symptom|refer to a specialist|admit for $n days|treat
    $disease first

ask: Can I take $drug for $symptom?|Does $disease cause $symptom?|Is $drug safe in $disease?|What does $lab mean?|
    How is $disease told from $disease?|Why does $drug cause $symptom?|When should $test be repeated?

sentence: $case, and $more.|$case; $more, and $more.|$case.|Okay, let's see: $think.|Hmm, $think, but $think.|So
    $think.|Also, $think, because $more.|I would $plan and $plan.|The next step is to $plan, then $plan.|If $more,
    $plan.|Patients should $advice and $advice.|What is the most likely diagnosis?|Which finding would most strongly
    support $disease?|What is the most appropriate next step?|Can I take $drug for $symptom if I also have $disease?|
    Wait, $think, so it seems wise to $plan.|Looking back, $more, which means $think.

item: $case; $more, and $more. What is the most likely diagnosis?|$case, and $more. $lab and $lab are found. Which drug
    should be given first: $drug, $drug or $drug?|$case. The $symptom $nature. $lab. Which test comes next: $test, $test
    or $test?|
    A $who with $disease takes $drug and $drug; $more. Which of these explains $symptom: $disease, $disease or $drug?|
    Which statement about $disease is correct: $think; $think; or $think?

boilerplate: Vital signs are within normal limits. The lungs are clear to auscultation bilaterally, and the heart
    sounds are regular without murmurs. The abdomen is soft and not tender.|This information does not replace a
    consultation; please see a doctor in person if symptoms persist or get worse.|There is no known drug allergy, no
    previous surgery and no family history of note. Immunizations are up to date.
""",
    joint=" ",
)
_SLOTS = {
    id(words): re.compile(r"\$(" + "|".join(sorted([*words, "n"], key=len, reverse=True)) + ")") for words in (ZH, EN)
}
WORDS = {"Chinese": ZH, "English": EN}
# What one doctor writes and another writes otherwise.
SYNONYMS = phrases("""
synonyms: 患者=病人|发热=发烧|腹泻=拉肚子|便秘=大便干结|瘙痒=发痒|失眠=睡不着|水肿=浮肿|反复=多次|建议=最好|复查=再查|
    大致正常=基本正常|住院=入院|平时=平常|首先=先是|可能=或许|同时=并且|医生=大夫|治疗=诊治|加重=变重|缓解=减轻|
    暂时=目前|及时=尽快|考虑到=鉴于|未见=没有见到
""")["synonyms"]
WIDE = str.maketrans(
    {
        ",": "，",
        ".": "。",
        ":": "：",
        "?": "？",
        "(": "（",
        ")": "）",
        "，": ", ",
        "。": ". ",
        "、": "，",
        "？": "?",
        "：": ":",
    }
)


def fill(rng: random.Random, words: Words, text: str) -> str:
    """`text` with its $slots filled at random, and the slots in those."""

    def draw(slot: re.Match[str]) -> str:
        if slot[1] == "n":
            return str(rng.randrange(1, 10))
        return fill(rng, words, rng.choice(words[slot[1]]))

    return _SLOTS[id(words)].sub(draw, text) if "$" in text else text


def sentences(rng: random.Random, words: Words, length: int, boilerplate: float = 0.1) -> list[str]:
    """Sentences of about `length` characters together, one in so many of them boilerplate."""
    parts, size = [], 0
    while size < length:
        plain = rng.random() >= boilerplate or size + 80 > length
        parts.append(fill(rng, words, rng.choice(words["sentence" if plain else "boilerplate"])))
        size += len(parts[-1])
    return parts


def written(words: Words, parts: list[str]) -> str:
    return ("" if words is ZH else " ").join(parts)


def record(rng: random.Random, words: Words, length: int, boilerplate: float = 0.1) -> str:
    return written(words, sentences(rng, words, length, boilerplate))


def edited(rng: random.Random, text: str, share: float) -> str:
    """So many of its characters, one at least, replaced (half), preceded by another (a quarter) or left out. Figures,
    what follows them, and sides are left alone: with another dose it would be another record."""
    chars = list(text)
    for _ in range(max(1, round(share * len(text)))):
        place, kind = rng.randrange(len(chars)), rng.random()
        while not SPARED.isdisjoint(chars[max(place - 3, 0) : place + 1]):
            place = rng.randrange(len(chars))
        other = rng.choice("的了在是有和就也都还" if not chars[place].isascii() else "etaoinshrd")
        if kind < 0.5:
            chars[place] = other
        elif kind < 0.75:
            chars.insert(place, other)
        elif len(chars) > 1:
            del chars[place]
    return "".join(chars)


def reworded(rng: random.Random, text: str) -> str:
    for word, other in (pair.split("=") for pair in SYNONYMS):
        if rng.random() < 0.5:
            text = text.replace(word, other)
    return text


def repunctuated(rng: random.Random, text: str) -> str:
    """Half- for full-width marks and the reverse, brackets and spaces put in; never between digits."""
    out = re.sub(r"(?<!\d)[,.:?(),。、？：（）](?!\d)", lambda mark: mark[0].translate(WIDE), text)
    return re.sub(r"(?<=[\u4e00-\u9fff])(?=[A-Za-z])", " ", out) if rng.random() < 0.5 else out.replace("；", ";")


# Speed and memory: each engine in its own process.


def ours(texts: Iterable[str], threshold: float) -> list[Pair]:
    index = Index()
    index.add(texts)
    return [pair for cluster in index.clusters(threshold) for pair in cluster.pairs]


def with_datasketch(texts: Iterable[str], threshold: float, hashed: bool) -> list[Pair]:
    """The same key, n-grams, bands, check and markers by datasketch; `hashed` gives it our hashes of the n-grams in
    place of strings, which spares it the slicing and the SHA-1."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(num_perm=SLOTS, params=(SLOTS // ROWS, ROWS))
    empty = MinHash(num_perm=SLOTS, hashfunc=int if hashed else None, scheme="affine64" if hashed else None)
    keys, sets, sketches, pairs, forest = [], [], [], [], Forest(0)
    for batch in batches(texts):
        codes, ends = keys_of(batch)
        hashes, begins = grams(codes, ends, N)
        keys += as_text(codes)
        for key, (begin, end) in zip(keys[len(sets) :], itertools.pairwise(begins.tolist()), strict=True):
            shingles = hashes[begin:end].tolist() if hashed else [key[i : i + N] for i in range(len(key) - N + 1)]
            sets.append(frozenset(shingles))
            sketches.append(empty.copy())
            sketches[-1].update_batch(sets[-1] if hashed else [shingle.encode() for shingle in sets[-1]])
    with lsh.insertion_session() as session:
        for number, sketch in enumerate(sketches):
            session.insert(number, sketch)
    forest, marks = Forest(len(sets)), cache(lambda number: markers(keys[number]))
    for number, sketch in enumerate(sketches):
        for other in lsh.query(sketch):
            if other < number and forest.root(other) != forest.root(number):
                jaccard = len(sets[number] & sets[other]) / max(len(sets[number] | sets[other]), 1)
                if jaccard >= threshold and marks(number) == marks(other):
                    forest.join(other, number)
                    pairs.append(Pair(other, number, jaccard))
    return pairs


ENGINES: dict[str, Callable[[Iterable[str], float], list[Pair]]] = {
    "ours": ours,
    "datasketch, fed our hashes": partial(with_datasketch, hashed=True),
    "datasketch, fed strings": partial(with_datasketch, hashed=False),
}


def child(engine: str, path: str, planted: int) -> None:
    """One engine over the lines of a file, from text to verified clusters; the last `planted` lines are near-duplicates
    of the first. Prints one JSON object."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    with open(path, encoding="utf-8") as file:
        pairs = ENGINES[engine]((line.rstrip("\n") for line in file), THRESHOLD)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    forest = Forest(len(lines))
    for pair in pairs:
        forest.join(pair.first, pair.second)
    wanted = [(i, len(lines) - planted + i) for i in range(planted)]
    true = [(a, b) for a, b in wanted if is_near(lines[a], lines[b])]
    found = sum(forest.root(a) == forest.root(b) for a, b in true)
    wrong = sum(
        not is_near(lines[pair.first], lines[pair.second])
        for pair in random.Random(0).sample(pairs, min(len(pairs), CHECKED))
    )
    print(
        json.dumps(
            {"seconds": seconds, "cpu": cpu, "peak": peak / 1024, "before": before / 1024, "pairs": len(pairs)}
            | {"true": len(true), "found": found, "wrong": wrong, "records": len(lines)}
        )
    )


def run_child(engine: str, path: str, planted: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.near", "--child", engine, path, str(planted)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def write_records(path: str, count: int, length: int, boilerplate: float) -> tuple[int, float]:
    """A tenth of the records are the first ones again, two in a hundred characters edited; how many, and the mean
    number of characters of a record."""
    rng, planted, size = random.Random(length), count // 10, 0
    first: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count - planted):
            text = record(rng, ZH, length, boilerplate)
            first += [text] if number < planted else []
            size += file.write(text + "\n") - 1
        for text in first:
            size += file.write(edited(rng, text, 0.02) + "\n") - 1
    return planted, size / count


def speed(quick: bool, repeat: int) -> list[str]:
    count = 2_000 if quick else 25_000
    with tempfile.TemporaryDirectory() as folder:
        planted, mean = write_records(f"{folder}/texts", count, 880, 0.05)
        runs = {engine: [run_child(engine, f"{folder}/texts", planted) for _ in range(repeat)] for engine in ENGINES}
    fastest = {engine: min(rows, key=lambda row: row["seconds"]) for engine, rows in runs.items()}
    rows = []
    for engine, row in fastest.items():
        slowest = max(run["seconds"] for run in runs[engine])
        ratio = row["seconds"] / fastest["ours"]["seconds"]
        rows.append(
            [engine, f"{count / row['seconds']:,.0f}", f"{count / slowest:,.0f}", f"× {ratio:.1f}", *_common(row)]
        )
    title = f"{count:,} records of {mean:.0f} Chinese characters; {repeat} run(s) an engine, one by one."
    return [title, table(["engine", "records/s, best", "worst", "time over ours", *_COMMON], rows)]


def million(quick: bool) -> list[str]:
    count = 50_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        planted, mean = write_records(f"{folder}/texts", count, 90, 0.02)
        row = run_child("ours", f"{folder}/texts", planted)
    title = (
        f"{count:,} records of {mean:.0f} characters, read from a file; the index keeps {Index.BYTES} bytes a record."
    )
    cells = [f"{row['seconds']:.1f}", f"{count / row['seconds']:,.0f}", *_common(row)]
    return [title, table(["seconds", "records/s", *_COMMON], [cells])]


_COMMON = [
    "CPU seconds",
    "peak MiB (before reading)",
    "planted pairs found",
    "pairs reported",
    "of those checked, wrong",
]


def _common(row: dict[str, Any]) -> list[str]:
    found = f"{row['found']:,} of {row['true']:,} ({row['found'] / max(row['true'], 1):.4f})"
    wrong = f"{row['wrong']} of {min(row['pairs'], CHECKED):,}"
    return [f"{row['cpu']:.1f}", f"{row['peak']:,.0f} ({row['before']:,.0f})", found, f"{row['pairs']:,}", wrong]


# Quality


def planted_pairs(rng: random.Random, words: Words, count: int) -> dict[str, list[tuple[str, str]]]:
    """`count` pairs of each kind of change that leaves a record the same record."""
    kinds: dict[str, Callable[[str, list[str]], str]] = {
        "1 % of characters edited": lambda text, parts: edited(rng, text, 0.01),
        "3 % edited": lambda text, parts: edited(rng, text, 0.03),
        "5 % edited": lambda text, parts: edited(rng, text, 0.05),
        "10 % edited": lambda text, parts: edited(rng, text, 0.10),
        "sentences re-ordered": lambda text, parts: written(words, rng.sample(parts, len(parts))),
        "a sentence left out": lambda text, parts: written(words, parts[1:]),
        "a sentence put in": lambda text, parts: written(words, [*parts, *sentences(rng, words, 1, 0)]),
        "punctuation, width, spaces": lambda text, parts: repunctuated(rng, text),
    }
    if words is ZH:
        kinds["traditional characters"] = lambda text, parts: TRADITIONAL.convert(text)
        kinds["synonyms"] = lambda text, parts: reworded(rng, text)
    else:
        kinds["capitals, line breaks"] = lambda text, parts: text.upper().replace(". ", ".\n\n")
    pairs: dict[str, list[tuple[str, str]]] = {}
    for kind, change in kinds.items():
        for _ in range(count):
            parts = sentences(rng, words, rng.choice((60, 120, 250, 500, 1000)) * (1 if words is ZH else 2))
            pairs.setdefault(kind, []).append((written(words, parts), change(written(words, parts), parts)))
    return pairs


def distinct_pairs(rng: random.Random, words: Words, count: int) -> dict[str, list[tuple[str, str]]]:
    """Pairs of two records: most of the text is the same boilerplate; or one figure, sign or side differs."""
    pairs: dict[str, list[tuple[str, str]]] = {"most of it the same boilerplate": []}
    while len(pairs["most of it the same boilerplate"]) < count:
        shared = rng.sample(words["boilerplate"], rng.randrange(1, 1 + len(words["boilerplate"])))
        size = round(sum(map(len, shared)) * rng.uniform(0.35, 0.8))
        one, other = (written(words, [record(rng, words, size, 0), *shared]) for _ in range(2))
        if not is_near(one, other):
            pairs["most of it the same boilerplate"].append((one, other))
    finding = (
        ("$test：HBsAg(%s)，$symptom。", "左|右") if words is ZH else ("$test: HBsAg (%s) and $symptom.", "left|right")
    )
    left, right = finding[1].split("|")
    for kind in ("one digit differs", "(+) for (-)", f"{left} for {right}"):
        pairs[kind] = []
        while len(pairs[kind]) < count // 20:
            parts = sentences(rng, words, rng.choice((60, 250, 800)))
            text = written(words, [fill(rng, words, finding[0]) % "+", f"{left}: ", *parts])
            changes = {"(+) for (-)": ("(+)", "(-)"), f"{left} for {right}": (left, right)}
            digits = [place for place, char in enumerate(text) if char.isdigit()]
            if kind in changes:
                pairs[kind].append((text, text.replace(*changes[kind], 1)))
            elif digits:
                place = rng.choice(digits)
                digit = rng.choice([d for d in "123456789" if d != text[place]])
                pairs[kind].append((text, text[:place] + digit + text[place + 1 :]))
    return pairs


KEPT = ["reported as a pair", "in one cluster through others"]


def quality(quick: bool) -> list[str]:
    """All pairs of all kinds in one index, in random order."""
    rng = random.Random(7)
    same = {
        "Chinese": planted_pairs(rng, ZH, 30 if quick else 300),
        "English": planted_pairs(rng, EN, 20 if quick else 150),
    }
    other = {"Chinese": distinct_pairs(rng, ZH, 1_000 if quick else 20_000)}
    other["English"] = distinct_pairs(rng, EN, 200 if quick else 4_000)
    groups = [
        (language, kind, pairs) for language, kinds in (*same.items(), *other.items()) for kind, pairs in kinds.items()
    ]
    texts = [text for _, _, pairs in groups for pair in pairs for text in pair]
    order = rng.sample(range(len(texts)), len(texts))
    numbers = {place: number for number, place in enumerate(order)}
    index = Index()
    index.add(texts[place] for place in order)
    begin = time.perf_counter()
    clusters = index.clusters(THRESHOLD)
    seconds = time.perf_counter() - begin
    direct = {pair[:2] for cluster in clusters for pair in cluster.pairs}
    home = {number: cluster.members[0] for cluster in clusters for number in cluster.members}
    reported = [pair for cluster in clusters for pair in cluster.pairs]
    wrong = sum(not is_near(texts[order[pair.first]], texts[order[pair.second]]) for pair in reported)
    found_rows, kept_rows, place = [], [], 0
    for group, (language, kind, pairs) in enumerate(groups):
        ours = [(numbers[place + 2 * i], numbers[place + 2 * i + 1]) for i in range(len(pairs))]
        place += 2 * len(pairs)
        joined = [home.get(a, -1) == home.get(b, -2) for a, b in ours]
        near = [is_near(*pair) for pair in pairs]
        hits = sum(itertools.compress(joined, near))
        if group < sum(map(len, same.values())):
            recall = f"{hits / sum(near):.4f}" if any(near) else "—"
            found_rows.append(
                [
                    kind,
                    language,
                    f"{len(pairs):,}",
                    f"{sum(near):,}",
                    f"{hits:,}",
                    recall,
                    f"{sum(joined) / len(pairs):.3f}",
                ]
            )
        else:
            like = f"{np.mean([jaccard_of(*pair) >= THRESHOLD for pair in pairs]):.3f}"
            paired = sum((min(pair), max(pair)) in direct for pair in ours)
            counts = [len(pairs), sum(near), paired, sum(joined) - paired]
            kept_rows.append([kind, language, like, *(f"{count:,}" for count in counts)])
    total = [sum(int(row[i].replace(",", "")) for row in found_rows) for i in (2, 3, 4)]
    found_rows.append(
        ["**all**", "", f"{total[0]:,}", f"{total[1]:,}", f"{total[2]:,}", f"**{total[2] / total[1]:.4f}**", ""]
    )
    return [
        f"{len(texts):,} records in one index, clusters in {seconds:.1f} s; near: Jaccard of {N}-grams ≥ {THRESHOLD} "
        "and equal markers, by Python's sets.",
        table(["planted", "language", "pairs", "near", "found of those", "recall", "found of all"], found_rows),
        table(["distinct", "language", f"share with Jaccard ≥ {THRESHOLD}", "pairs", "near", *KEPT], kept_rows),
        f"Pairs reported: {len(reported):,}; not near by Python's sets: {wrong}; "
        f"precision {1 - wrong / max(len(reported), 1):.4f}.",
    ]


def jaccard_of(one: str, other: str) -> float:
    sets = [{key[i : i + N] for i in range(len(key) - N + 1)} for key in map(key_of, (one, other))]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def is_near(one: str, other: str) -> bool:
    """The definition, by Python's own sets."""
    return jaccard_of(one, other) >= THRESHOLD and markers(key_of(one)) == markers(key_of(other))


# Decontamination

PREFIXES = {
    "Chinese": [
        "请回答下面的问题：",
        "医生您好，想咨询一下。",
        "【单选题】",
        "以下是一位网友的提问，请作答。\n\n",
        "问：",
    ],
    "English": ["Question: ", "Please answer the following. ", "I found this in an exam:\n", "Doctor, ", "[Case 12] "],
}
LEAKS: dict[str, Callable[[random.Random, str, str], str]] = {
    "exact": lambda rng, text, language: text,
    "with a prefix": lambda rng, text, language: rng.choice(PREFIXES[language]) + text,
    "punctuation changed": lambda rng, text, language: repunctuated(rng, text),
    "3 % edited": lambda rng, text, language: edited(rng, text, 0.03),
}


def word_runs(text: str, n: int = 8) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def char_runs(text: str, n: int = 13) -> set[str]:
    key = key_of(text)
    return {key[i : i + n] for i in range(len(key) - n + 1)}


def items_of(rng: random.Random, words: Words, count: int) -> dict[str, list[str]]:
    """Evaluation items: cases with a question, and bare questions of 13 to 40 characters of their key."""
    language = "Chinese" if words is ZH else "English"
    drawn = {f"{language}, cases": "item", f"{language}, short questions": "ask"}
    items: dict[str, dict[str, None]] = {name: {} for name in drawn}
    for name, slot in drawn.items():
        while len(items[name]) < count:
            text = fill(rng, words, rng.choice(words[slot]))
            if slot == "item" or 13 <= len(key_of(text)) <= 40:
                items[name][text] = None
    return {name: list(texts) for name, texts in items.items()}


def contamination(quick: bool, repeat: int) -> list[str]:
    rng, count, clean_count = random.Random(11), 200 if quick else 1_000, 2_000 if quick else 24_000
    items = items_of(rng, ZH, count) | items_of(rng, EN, count)
    clean = {
        words: [record(rng, WORDS[words], rng.randrange(60, 900)) for _ in range(clean_count // 2)] for words in WORDS
    }
    ordinary = [text for texts in clean.values() for text in texts]
    guards = {
        "ours": Guard(items, ordinary),
        "ours, without ordinary texts": Guard(items),
        "any 13 characters": Shared(items, char_runs),
        "any 8 words (open-r1's way)": Shared(items, word_runs),
    }
    rows = []
    for name, texts in items.items():
        language = name.split(",")[0]
        leaks = {kind: [leak(rng, text, language) for text in texts] for kind, leak in LEAKS.items()}
        answered = {kind: [text + record(rng, WORDS[language], 200) for text in leaks[kind]] for kind in leaks}
        for guard, check in guards.items():
            found = (
                np.mean([hit is not None for hit in check.check_all(texts)])
                for texts in (*leaks.values(), *answered.values())
            )
            rows.append([guard, name, *(f"{share:.4f}" for share in found)])
    heads = ["", "items", *LEAKS, *(f"{kind}, answer behind" for kind in LEAKS)]
    title = (
        f"{count:,} evaluation items of each kind, leaked in four ways, alone and with an answer behind: share found."
    )
    out = [title, table(heads, rows), "Records in which no item was put; some hold a short question by chance."]
    rows = []
    for (guard, check), (language, texts) in itertools.product(guards.items(), clean.items()):
        flagged = [(hit, text) for hit, text in zip(check.check_all(texts), texts, strict=True) if hit]
        whole = "—"
        if isinstance(check, Guard):
            whole = f"{sum(key_of(items[hit.file][hit.number]) in key_of(text) for hit, text in flagged):,}"
        rows.append([guard, language, f"{len(texts):,}", f"{len(flagged):,}", whole])
    out.append(table(["", "records", "count", "flagged", "of those, with the item whole in them"], rows))
    return [*out, *guard_speed(items, ordinary, quick, repeat), *real_alarms()]


class Shared:
    """What others do: a text is flagged that shares one run with any item."""

    def __init__(self, items: dict[str, list[str]], runs: Callable[[str], set]) -> None:
        self.runs = runs
        self.known = {run for texts in items.values() for text in texts for run in runs(text)}

    def check_all(self, texts: list[str]) -> list[bool | None]:
        return [None if self.known.isdisjoint(self.runs(text)) else True for text in texts]


def guard_speed(items: dict[str, list[str]], ordinary: list[str], quick: bool, repeat: int) -> list[str]:
    rng = random.Random(12)
    rows = []
    for name, words, length in (
        ("Chinese", ZH, 280),
        ("Chinese", ZH, 880),
        ("English", EN, 600),
        ("English", EN, 1800),
    ):
        texts = [record(rng, words, length) for _ in range(1_000 if quick else 10_000)]
        begin = time.perf_counter()
        guard = Guard(items, ordinary)
        built = time.perf_counter() - begin
        rates = []
        for _ in range(repeat):
            begin = time.perf_counter()
            flagged = sum(hit is not None for hit in guard.check_all(texts))
            rates.append(len(texts) / (time.perf_counter() - begin))
        mean = np.mean([len(text) for text in texts])
        rows.append(
            [
                name,
                f"{len(texts):,}",
                f"{mean:.0f}",
                f"{max(rates):,.0f}",
                f"{min(rates):,.0f}",
                f"{built:.1f}",
                f"{flagged}",
            ]
        )
    heads = [
        "records",
        "count",
        "characters",
        "records/s, best",
        "worst",
        "seconds to build, with ordinary texts",
        "flagged",
    ]
    return [f"Speed of the guard, {sum(map(len, items.values())):,} items.", table(heads, rows)]


def real_alarms() -> list[str]:
    """What the first quarter of a real file, taken for evaluation items, flags in the rest of it."""
    folder = os.environ.get("REAL_DATA")
    if not folder:
        return ["False alarms on real files: not measured, REAL_DATA names no folder."]
    rows = []
    for name, item_key, text_keys in REAL:
        records = [row for _, row in read_rows(str(next(Path(folder).glob(name))))]
        held, rest = records[: len(records) // 4], records[len(records) // 4 :]
        items = [row[item_key] for row in held]
        texts = ["\n".join(row[key] for key in text_keys) for row in rest]
        for known, ordinary in (("no", ()), ("yes", [row[item_key] for row in rest])):
            hits = Guard({name: items}, ordinary).check_all(texts)
            alike = [likeness(items[hit.number], row[item_key]) for hit, row in zip(hits, rest, strict=True) if hit]
            counts = Counter(bisect.bisect((0.3, 0.7), value) for value in alike)
            cells = [f"{len(items):,}", f"{len(texts):,}", known, f"{len(alike)}", *(f"{counts[i]}" for i in (2, 1, 0))]
            rows.append([name, item_key, *cells, f"{counts[0] / len(texts):.4f}"])
    heads = ["file", "items", "count", "records checked", "ordinary texts known", "flagged"]
    heads += ["complaint or question alike ≥ 0.7", "≥ 0.3", "below", "share below"]
    return [
        "Real files, split in two: flagged records, by how alike the two questions are in fact.",
        table(heads, rows),
    ]


def likeness(one: str, other: str) -> float:
    """Of two patient records, of their chief complaints (the third line); else of the texts: by difflib's ratio."""
    lines = [text.split("\n")[2] if text.startswith("性别") else text for text in (one, other)]
    return SequenceMatcher(None, *map(key_of, lines), autojunk=False).ratio()


REAL = [
    ("*camp_data_step_1_without_answer.jsonl", "feature_content", ["feature_content"]),
    ("delicate_medical_r1_val.jsonl", "question", ["question", "think", "answer"]),
    ("delicate_medical_r1_val.jsonl", "instruction", ["question", "think", "answer"]),
    ("medical_o1_sft.json", "Question", ["Question", "Complex_CoT", "Response"]),
]


# The command


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def surroundings() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "rensa", "opencc", "datasketch"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {packages}, "
        f"{len(os.sched_getaffinity(0))} cores, load {load}, {THREADS} threads."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("speed", "million", "quality", "contamination", "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the records or fewer: to try the command")
    parser.add_argument("--repeat", type=int, default=3, help="runs an engine; the best and the worst are printed")
    parser.add_argument("--child", nargs=3, metavar=("ENGINE", "FILE", "PLANTED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.child[1], int(arguments.child[2]))
        return
    parts = {
        "speed": partial(speed, arguments.quick, arguments.repeat),
        "million": partial(million, arguments.quick),
        "quality": partial(quality, arguments.quick),
        "contamination": partial(contamination, arguments.quick, arguments.repeat),
    }
    for name, part in parts.items():
        if arguments.what in (name, "all"):
            print(f"## {name}\n\n{surroundings()}\n")
            print("\n\n".join(part()) + "\n", flush=True)


if __name__ == "__main__":
    main()
