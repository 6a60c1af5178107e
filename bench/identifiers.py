"""How many planted identifiers `preprocess.privacy` finds, and how often it cries wolf.

    python -m bench.identifiers

Two sets of invented notes, Chinese and English. This file's half was written next to the scanner; the other half,
`bench/identifiers_blind.py`, by someone who had not seen its code. A planted identifier is found when one finding of
its kind covers it whole; a finding is a false alarm when it overlaps nothing planted.

The blind half's first score, 2026-11-22, before anything was changed for its sake (5,800 texts, 3,200 of them empty):

| kind          | planted | found | recall | findings | false alarms | precision |
|---------------|---------|-------|--------|----------|--------------|-----------|
| address       |     818 |   728 | 0.8900 |      776 |           29 |    0.9626 |
| birth_date    |     837 |   455 | 0.5436 |      467 |            1 |    0.9979 |
| email         |     672 |   664 | 0.9881 |      664 |            0 |    1.0000 |
| id_card       |     556 |   524 | 0.9424 |      524 |            0 |    1.0000 |
| name          |   5,462 | 2,841 | 0.5201 |    3,008 |           97 |    0.9678 |
| phone         |   1,274 | 1,248 | 0.9796 |    1,285 |           18 |    0.9860 |
| record_number |     902 |   496 | 0.5499 |      552 |           62 |    0.8877 |
| all           |  10,521 | 6,956 | 0.6612 |    7,276 |          207 |    0.9716 |

What it brought: tables, CSV, HL7 and DICOM, values on the line after their label, spaced-out labels, birth dates to the
month, rarer number groupings, double surnames, Tibetan, Mongolian and Yi names, bare names between marks. Its score
since then is one on known material, not a forecast: on notes of a new shape expect the first score, not the last.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

from preprocess.privacy import find
from preprocess.records import read_rows

Note = tuple[str, list[tuple[str, int, int]]]  # a text, and (kind, start, end) of each identifier planted in it


def _words(text: str, mark: str | None = None) -> list[str]:
    return text.split(mark)


SLOT = re.compile(r"\{(\w+)\}")

# --- what is planted --------------------------------------------------------------------------------------------------

SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘"
    "杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康"
    "毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"
)
RARE = _words("欧阳 上官 司马 诸葛 慕容 皇甫 尉迟 令狐 翟 臧 佟 覃 鄢 谌 亓 逄 隗 宓 暴 车 幸 麦 冼 仝 阚 郗")
GIVEN = _words(
    "建国 建华 国强 志强 志明 秀英 秀兰 桂英 桂兰 玉兰 玉珍 淑珍 淑芬 丽华 丽娟 丽萍 晓明 晓燕 小红 小军 海燕"
    " 海涛 春梅 春花 冬梅 雪梅 红梅 文静 文杰 俊杰 俊峰 志远 "
    "浩然 子轩 子涵 梓萱 雨桐 欣怡 诗涵 思远 思琪 佳怡 佳琪 一诺 宇航 宇轩 嘉豪 天佑 永福 福生 德海 德明 宝珠"
    " 凤英 凤霞 金凤 金花 水生 根生 长福 兆丰 世昌 承志 "
    "婉婷 美玲 慧敏 晨曦 沐阳 若曦 一鸣 云飞 立新 卫东 卫国 援朝 跃进 爱华 爱民 庆生 万福 二妮 招娣 来福 家栋"
    " 国栋 维维 圆圆 伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 艳 "
    "杰 娟 涛 明 超 霞 平 刚 桂 波 玲 宁 斌 辉 鹏 凯 倩 颖 璐 琳 瑶 煜 翀 昊 睿 璟 钰 珂 菲 蕾 岚"
)
MINORITY = _words(
    "阿卜杜拉·买买提 古丽娜尔·艾尔肯 迪丽拜尔·吐尔逊 艾力江·热合曼 次仁·卓玛 巴特尔·额尔德尼 扎西·多吉 "
    "玛依拉·库尔班 买买提·依明"
)
FIRST = _words(
    "James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan "
    "Joseph Jessica Thomas "
    "Sarah Carlos Maria Wei Xiaoming Ahmed Fatima Priya Anil Olga Ivan Hiroshi Yuki Siobhan Liam Aoife José "
    "Zoë Chloë Marek "
    "Agnieszka Kwame Ngozi Nguyen Thi Pedro Lucía Björn Astrid Grace Henry Walter Dorothy Eugene Harold Mildred Gladys"
)
LAST = _words(
    "Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez Wilson "
    "Anderson Thomas Taylor "
    "Moore Jackson Lee Perez Thompson Harris Clark Lewis Robinson Walker Young Allen King Wright Scott "
    "O'Connor O’Brien McDonald "
    "MacLeod Smith-Jones Patel Singh Chen Wang Zhang Nakamura Kowalski Nowak Müller García Fernández Nguyen "
    "Okafor Haddad Petrov "
    "Ivanova Ferreira Rossi Dubois"
)
AREAS = _words("010 021 022 023 024 025 027 028 029 0311 0371 0512 0531 0571 0591 0731 0755 0791 0851 0871 0931 0991")
REGIONS = _words(
    "江苏省南京市鼓楼区 浙江省杭州市西湖区 湖北省武汉市洪山区 广东省深圳市福田区 四川省成都市武侯区 "
    "北京市朝阳区 上海市浦东新区 重庆市渝中区 天津市和平区 河南省郑州市金水区 "
    "陕西省西安市雁塔区 山东省济南市历下区 黑龙江省哈尔滨市南岗区 新疆维吾尔自治区乌鲁木齐市天山区 "
    "广西壮族自治区南宁市青秀区 内蒙古自治区呼和浩特市新城区 福建省厦门市思明区 "
    "南京市玄武区 苏州市姑苏区 长沙市岳麓区 云南省大理白族自治州大理市"
)
COUNTIES = _words(
    "河南省周口市太康县 安徽省阜阳市颍上县 河北省保定市定兴县 湖南省邵阳市隆回县 甘肃省天水市秦安县 "
    "贵州省毕节市威宁县 四川省凉山彝族自治州昭觉县 山西省吕梁市临县 江西省赣州市于都县"
)
TOWNS = _words(
    "王集乡李庄村 马头镇大杨村 城关镇东关村 石桥镇前进村 白沙镇河西村 新店镇赵家屯 柳林乡小王庄 永和镇五里铺村"
)
ROADS = _words(
    "中山路 解放路 人民南路 珞喻路 建设大道 长安街 和平西路 学院路 文三路 天府大道 北京东路 朝阳北路 民主街 "
    "胜利巷 槐树胡同 环城东路 经三路 平安大街"
)
ESTATES = _words("阳光花园 翠湖小区 金色家园 锦绣苑 幸福里小区 万科城 东方公寓 教师新村 绿地国际花都 和谐佳苑")
STREETS = _words(
    "Main Street|Oak Avenue|Maple Drive|Elm St|Washington Blvd|Park Lane|Cedar Court|5th Avenue|Church Road"
    "|Victoria Terrace|Sunset Boulevard|Lincoln Way|Queen Street West|Old Mill Rd|Martin Luther King Jr Blvd"
    "|Jianguo Road",
    "|",
)
CITIES = _words(
    "Springfield, IL 62704|Boston, MA 02115|Austin, TX 78701|Portland, OR|San Diego, CA 92103|Leeds LS1 4AP"
    "|London SW1A 2AA|Toronto, ON|Chaoyang District, Beijing|Cambridge",
    "|",
)
MONTHS = _words("January February March April May June July August September October November December")
DOMAINS = _words(
    "163.com qq.com 126.com sina.com.cn gmail.com outlook.com hospital.org.cn example.org nhs.net mail.example.edu"
)
PROVINCES = _words("11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65")


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("0123456789", k=count))


def chinese_name(draw: random.Random) -> str:
    surname = draw.choice(RARE) if draw.random() < 0.1 else draw.choice(SURNAMES)
    return surname + draw.choice(GIVEN)


def labelled_name(draw: random.Random) -> str:
    return draw.choice(MINORITY) if draw.random() < 0.06 else chinese_name(draw)


def english_name(draw: random.Random) -> str:
    middle = draw.choice(["", "", f" {draw.choice('ABCDEHJKLMR')}.", f" {draw.choice(FIRST)}"])
    return f"{draw.choice(FIRST)}{middle} {draw.choice(LAST)}"


def listed_name(draw: random.Random) -> str:
    first, last = draw.choice(FIRST), draw.choice(LAST)
    return draw.choice(
        [f"{last}, {first}", f"{last.upper()}, {first.upper()} {draw.choice('ABCDE')}.", f"{first} {last}"]
    )


def born(draw: random.Random) -> tuple[int, int, int]:
    return draw.randint(1932, 2023), draw.randint(1, 12), draw.randint(1, 28)


def id_card(draw: random.Random) -> str:
    """Valid by construction: the last character makes the weighted sum 1 (mod 11), as ISO 7064 has it."""
    year, month, day = born(draw)
    if draw.random() < 0.1:
        return f"{draw.choice(PROVINCES)}{digits(draw, 4)}{draw.randint(32, 99)}{month:02}{day:02}{digits(draw, 3)}"
    body = f"{draw.choice(PROVINCES)}{digits(draw, 4)}{year}{month:02}{day:02}{digits(draw, 3)}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    rest = sum(int(digit) * weight for digit, weight in zip(body, weights, strict=True)) % 11
    check = next(value for value in range(11) if (rest + value) % 11 == 1)
    number = body + ("X" if check == 10 else str(check))
    style = draw.random()
    if style < 0.1:
        return f"{number[:6]} {number[6:14]} {number[14:]}"
    if style < 0.2:
        return number.translate({code: code + 0xFEE0 for code in range(0x30, 0x5B)})
    return number.lower() if style < 0.3 else number


def mobile(draw: random.Random) -> str:
    number = f"1{draw.choice('3456789')}{digits(draw, 9)}"
    grouped = f"{number[:3]}{{0}}{number[3:7]}{{0}}{number[7:]}"
    return draw.choice(
        [number, number, grouped.format(" "), grouped.format("-"), f"+86 {number}", f"+86-{number}", f"0086{number}"]
    )


def landline(draw: random.Random) -> str:
    area, number = draw.choice(AREAS), f"{draw.choice('2345678')}{digits(draw, draw.choice([6, 7]))}"
    return draw.choice(
        [
            f"{area}-{number}",
            f"({area}){number}",
            f"（{area}）{number}",
            f"{area} {number}",
            f"+86 {area[1:]} {number}",
            f"{area}-{number}-{draw.randint(100, 999)}",
        ]
    )


def phone(draw: random.Random) -> str:
    return mobile(draw) if draw.random() < 0.65 else landline(draw)


def english_phone(draw: random.Random) -> str:
    area, exchange, line = draw.randint(201, 989), draw.randint(200, 999), f"01{draw.randint(10, 99)}"
    area = 212 if area in (400, 800) else area
    return draw.choice(
        [
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"+1 {area}-{exchange}-{line}",
            f"{area}.{exchange}.{line}",
            f"+44 20 7946 {digits(draw, 4)}",
            mobile(draw),
        ]
    )


def record_number(draw: random.Random) -> str:
    return draw.choice([
        digits(draw, draw.randint(6, 10)), f"ZY{digits(draw, 8)}", 
            f"{draw.randint(2015, 2024)}"
            f"{digits(draw, 6)}"
        , f"P{digits(draw, 7)}",
        f"{draw.randint(2015, 2024)}-{digits(draw, 5)}", f"M-{digits(draw, 6)}", f"0{digits(draw, 6)}",
    ])  # fmt: skip


def address(draw: random.Random) -> str:
    number = draw.choice([f"{draw.randint(1, 999)}号", f"{draw.randint(1, 99)}弄{draw.randint(1, 60)}号"])
    door = draw.choice([
        f"{draw.randint(1, 30)}栋{draw.randint(1, 4)}单元{draw.randint(101, 2404)}室", 
            f"{draw.randint(1, 30)}幢"
            f"{draw.randint(101, 904)}"
        , "",
        f"{draw.choice(ESTATES)}{draw.randint(1, 20)}号楼{draw.randint(101, 2404)}室", 
            f"{draw.randint(1, 20)}-"
            f"{draw.randint(1, 4)}-"
            f"{draw.randint(101, 904)}"
        ,
    ])  # fmt: skip
    rural = (
        f"{draw.choice(COUNTIES)}{draw.choice(TOWNS)}"
        f"{draw.choice(['', f'{draw.randint(1, 12)}组', f'{draw.randint(1, 300)}号'])}"
    )
    estate = f"{draw.choice(REGIONS)}{draw.choice(ESTATES)}{draw.randint(1, 20)}栋{draw.randint(101, 2404)}室"
    return draw.choice(
        [
            f"{draw.choice(REGIONS)}{draw.choice(ROADS)}{number}{door}",
            f"{draw.choice(REGIONS)}{draw.choice(ROADS)}{number}{door}",
            rural,
            estate,
        ]
    )


def english_address(draw: random.Random) -> str:
    unit = draw.choice(
        [
            "",
            "",
            f", Apt {draw.randint(1, 40)}{draw.choice('ABCD')}",
            f" Suite {draw.randint(100, 900)}",
            f", Unit {draw.randint(1, 90)}",
        ]
    )
    city = draw.choice(["", *[f", {city}" for city in CITIES]])
    return f"{draw.randint(1, 9899)} {draw.choice(STREETS)}{unit}{city}"


def email(draw: random.Random) -> str:
    user = draw.choice(
        [
            "zhangwei",
            "li.na",
            "wang_fang88",
            "j.smith",
            "maria-lopez",
            f"{digits(draw, 9)}",
            "chen+clinic",
            "x",
            "Liu.Yang.2001",
        ]
    )
    return f"{user}@{draw.choice(DOMAINS)}"


def birth_date(draw: random.Random) -> str:
    year, month, day = born(draw)
    return draw.choice([
        f"{year}-{month:02}-{day:02}", f"{year}年{month}月{day}日", f"{year}/{month}/{day}",
        f"{year}.{month:02}.{day:02}", f"{year}{month:02}{day:02}",
        f"{year}年{month:02}月{day:02}日", f"{year} 年 {month} 月 {day} 日",
    ])  # fmt: skip


def english_birth_date(draw: random.Random) -> str:
    year, month, day = born(draw)
    name = MONTHS[month - 1]
    return draw.choice([
        f"{month:02}/{day:02}/{year}", f"{month}/{day}/{year % 100:02}", f"{name} {day}, {year}",
        f"{day} {name} {year}", f"{day}-{name[:3]}-{year}", f"{year}-{month:02}-{day:02}",
        f"{name[:3]} {day}th, {year}", f"{day:02}.{month:02}.{year}",
    ])  # fmt: skip


def passport(draw: random.Random) -> str:
    return draw.choice(
        [
            f"E{digits(draw, 8)}",
            f"G{digits(draw, 8)}",
            f"E{draw.choice('ABCDE')}{digits(draw, 7)}",
            f"C{digits(draw, 8)}",
        ]
    )


def bank_card(draw: random.Random) -> str:
    body = draw.choice(["622202", "621700", "622848", "6228480", "43674212", "545454"])
    body += digits(draw, draw.choice([15, 18]) - len(body)) if body[0] == "6" else digits(draw, 15 - len(body))
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in body[::-1][::2]) + sum(map(int, body[::-1][1::2]))
    number = body + str(-doubled % 10)
    return number if draw.random() < 0.6 else " ".join(number[place : place + 4] for place in range(0, len(number), 4))


def account(draw: random.Random) -> str:
    return draw.choice(
        [
            f"wx{digits(draw, 6)}",
            "zhang_wei-88",
            "Lily20010",
            f"{draw.randint(1, 9)}{digits(draw, 8)}",
            "wxid_a8k2m4n6p0",
        ]
    )


def plate(draw: random.Random) -> str:
    dot = draw.choice(["", "·", ""])
    return (
        f"{draw.choice('京沪苏浙粤川鄂湘鲁豫陕')}{draw.choice('ABCDEFGH')}{dot}{draw.choice(['', 'D', 'F'])}"
        f"{digits(draw, 5)}"
    )


PLANT: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "name": ("name", chinese_name),
    "lname": ("name", labelled_name),
    "ename": ("name", english_name),
    "listed": ("name", listed_name),
    "elast": ("name", lambda draw: draw.choice(LAST)),
    "id_card": ("id_card", id_card),
    "phone": ("phone", phone),
    "ephone": ("phone", english_phone),
    "short": ("phone", lambda draw: f"{draw.choice('2345678')}{digits(draw, 7)}"),
    "record": ("record_number", record_number),
    "address": ("address", address),
    "eaddress": ("address", english_address),
    "email": ("email", email),
    "birth": ("birth_date", birth_date),
    "ebirth": ("birth_date", english_birth_date),
    "passport": ("passport", passport),
    "bank": ("bank_card", bank_card),
    "account": ("account", account),
    "plate": ("plate", plate),
}  # fmt: skip

# --- where it is planted ----------------------------------------------------------------------------------------------

CHINESE_LINES = """
姓名：{lname}  性别：{sex}  年龄：{age}岁  科室：呼吸内科  床号：12
患者姓名:{lname}，{sex}，{age}岁，{job}，住院号：{record}
姓　名：{name}　　性　别：{sex}　　病案号：{record}
【姓名】{lname}【性别】{sex}【出生日期】{birth}
| 姓名 | {name} | 性别 | {sex} | 就诊卡号 | {record} |
"姓名": "{lname}", "性别": "{sex}", "身份证号": "{id_card}"
姓名 {name} 性别 {sex} 年龄 {age} 门诊号 {record}
患者{name}，{sex}，{age}岁，因“{complaint}”于{date}入院。
患者{name}（{sex}，{age}岁），{complaint}。
{name}，{sex}，{age}岁，{job}。主诉：{complaint}。
患者{name}因{complaint}就诊，{finding}。
患儿{name}，{sex}，出生于{birth}，{complaint}。
家属{name}签字同意手术，联系电话{phone}。
病人{name}诉{complaint}，{finding}。
联系人：{lname}（{relation}）  电话：{phone}
紧急联系人:{name}，手机 {phone}
其{relation}{name}陪同来院，留手机号{phone}。
由{relation}{name}代诉病史，病史可靠。
{name}先生来电咨询，{complaint}，建议{date}复诊。
{name}女士，{age}岁，{finding}，已电话随访（{phone}）。
{name}主任医师查房：{finding}，继续目前治疗。
请心内科{name}主任会诊，意见：{finding}。
主治医师：{name}    住院医师：{name}
医师签名：{name}    日期：{date}
家属签名：{name}    与患者关系：{relation}
报告医师：{name}  审核医师：{name}  报告日期：{date}
主刀：{name}  一助：{name}  麻醉师：{name}
记录者：{name}
责任护士：{name}，{date} 08:00交班。
检查者: {name}    送检医师: {name}
身份证号：{id_card}
身份证号码 {id_card}，医保卡号 {record}
公民身份号码：{id_card}。
患者自带身份证（{id_card}），已核对。
证件号码:{id_card}；联系方式:{phone}
联系电话：{phone}。
手机号：{phone}，家中座机：{phone}
如有不适请拨打{phone}，或加微信：{account}
家属电话{phone}，已告知病情。
护士站回访电话（{phone}）无人接听。
电话：{short}
随访：{date}致电{phone}，{finding}。
住院号：{record}  病区：神经内科一病区
住院号{record}，第2次入院。
门诊号: {record}；影像号: {record}
病历号（{record}），既往在我院就诊。
登记号：{record}  影像号：{record}
患者ID：{record}
病案号为{record}，归档日期{date}。
住址：{address}
家庭住址:{address}，邮编210008
现住址：{address}；联系电话：{phone}
家住{address}，{job}。
患者现居住于{address}，务农。
户籍地址：{address}  工作单位：某机械厂
地址：{address}，退休。
来自{address}，无疫区接触史。
出生日期：{birth}
出生年月日:{birth}  民族：汉族
患者生于{birth}，原籍，久居本地。
生日：{birth}，足月顺产。
患儿系G1P1，{birth}出生，出生体重3250g。
出生日期 {birth}，年龄{age}岁。
电子邮箱：{email}
报告请发至{email}。
邮箱:{email}；QQ：{account}
护照号：{passport}，国籍：中国
护照号码 {passport}
港澳通行证：{passport}
银行卡号：{bank}，开户行：工商银行
退款至银行卡{bank}（{name}女士）。
微信号：{account}
QQ:{account}
患者驾车（{plate}）途中追尾，{complaint}。
车牌号{plate}，急救车转运。
肇事车辆{plate}已由交警扣留，{finding}。
家属驾车{plate}送来，{finding}。
陪诊车辆：{plate}；陪诊人手机：{phone}
患者乘坐网约车（车牌{plate}）途中晕倒。
银行卡号:{bank}
医保报销款转入银行卡 {bank}，请核对。
开户账号：{bank}，户名：{name}
缴费卡{bank}，金额1200元。
护照：{passport}，入境日期{date}
""".strip().splitlines()

ENGLISH_LINES = """
Patient Name: {ename}   MRN: {record}   DOB: {ebirth}
Patient: {ename}, {age} y/o, admitted {edate} with {ecomplaint}.
Name: {listed}
NAME: {listed}    Sex: F    Age: {age}
Mr. {elast} is a {age}-year-old man with {ecomplaint}.
Mrs. {elast} reports {ecomplaint}; {efinding}.
Ms. {ename} was seen in clinic on {edate}. {efinding}.
{ename} is a {age}-year-old woman who presents with {ecomplaint}.
{ename}, a {age}-year-old teacher, {efinding}.
Dr. {elast} reviewed the films: {efinding}.
Attending physician: {ename}, MD
Attending: Dr. {elast}. Consultant: Dr. {ename}.
Electronically signed by: {ename} on {edate}
Dictated by {ename}, M.D.
Next of kin: {ename} (spouse), phone {ephone}
Emergency contact: {ename}, {ephone}
Her husband {ename} was called at {ephone}.
Primary care physician: {ename}
Referred by Dr. {elast} for {ecomplaint}.
Full name: {ename}; date of birth: {ebirth}; passport no. {passport}
MRN: {record}
MRN {record}, admitted {edate}.
Medical Record Number: {record}
Patient ID: {record}    Ward: 7B
Hospital No. {record}; {efinding}.
Chart #: {record}
Record No: {record}. {efinding}.
Admission No.: {record}   Discharge date: {edate}
DOB: {ebirth}
Date of Birth: {ebirth}   Sex: M
D.O.B. {ebirth}. {efinding}.
Born on {ebirth}, term delivery.
Birthdate {ebirth}; {ecomplaint}.
Phone: {ephone}
Tel. {ephone}, Fax: {ephone}
Please call {ephone} if symptoms return.
Mobile: {ephone}. E-mail: {email}
Reached by cell phone ({ephone}) on {edate}.
Home phone {ephone}; {efinding}.
Address: {eaddress}
Home address: {eaddress}; Phone: {ephone}
She lives at {eaddress}. {efinding}.
He lives alone at {eaddress}.
Mailing address: {eaddress}
Discharged home to {eaddress} with visiting nurse.
Contact her at {email}.
Email: {email}; {efinding}.
Results were sent to {email} on {edate}.
Passport: {passport}
Credit card {bank} on file.
WeChat: {account}
""".strip().splitlines()

FILLER: dict[str, list[str]] = {
    "sex": ["男", "女"],
    "relation": _words("儿子 女儿 妻子 丈夫 母亲 父亲"),
    "job": _words("农民 工人 退休教师 货车司机 个体经营 学生"),
    "complaint": _words(
        "反复咳嗽咳痰10年，加重3天|胸痛2小时|发热、头痛1天|右上腹痛伴呕吐半天|活动后气促1月|多饮多尿消瘦3月"
        "|头晕伴视物旋转1小时|双下肢水肿1周",
        "|",
    ),
    "finding": _words(
        "T 38.6℃，P 102次/分，BP 138/86mmHg|WBC 13.6×10^9/L，N 86.4%，CRP 92mg/L|双肺呼吸音粗，可闻及湿啰音"
        "|心电图示窦性心律，ST-T改变|肌酐 156μmol/L，eGFR 42ml/min"
        "|予阿司匹林100mg qd、氯吡格雷75mg qd|胸部CT：右肺下叶斑片影|腹软，无压痛，肠鸣音4次/分|HbA1c "
        "9.1%，空腹血糖10.4mmol/L",
        "|",
    ),
    "ecomplaint": _words(
        "chest pain|shortness of breath for 3 days|fever and cough|abdominal pain|left-sided weakness"
        "|progressive ankle swelling",
        "|",
    ),
    "efinding": _words(
        "BP 142/88, HR 96, SpO2 94% on room air|troponin I 0.04 ng/mL|WBC 12.4, creatinine 1.3 mg/dL|lungs "
        "clear to auscultation|the ECG shows sinus rhythm"
        "|Murphy sign was negative|continue metformin 500 mg twice daily|CT shows a 12 mm nodule in the right"
        " lower lobe",
        "|",
    ),
}


def fill(template: str, draw: random.Random) -> Note:
    """A template with its slots filled, and where the identifiers among them lie."""
    text, spans, last = "", [], 0
    for slot in SLOT.finditer(template):
        text += template[last : slot.start()]
        key, last = slot[1], slot.end()
        if key in PLANT:
            kind, make = PLANT[key]
            value = make(draw)
            spans.append((kind, len(text), len(text) + len(value)))
        else:
            value = plain(key, draw)
        text += value
    return text + template[last:], spans


def plain(key: str, draw: random.Random) -> str:
    """What stands in a slot that holds no identifier."""
    if key in FILLER:
        return draw.choice(FILLER[key])
    year, month, day = draw.randint(2015, 2024), draw.randint(1, 12), draw.randint(1, 28)
    hour, number = f"{draw.randint(0, 23):02}:{draw.randint(0, 59):02}", draw.randint(1, 99)
    written = {
        "age": str(draw.randint(18, 89)),
        "n": str(number),
        "date": draw.choice(
            [
                f"{year}-{month:02}-{day:02}",
                f"{year}年{month}月{day}日",
                f"{year}/{month}/{day}",
                f"{year}-{month:02}-{day:02} {hour}",
            ]
        ),
        "edate": draw.choice(
            [f"{month:02}/{day:02}/{year}", f"{MONTHS[month - 1]} {day}, {year}", f"{year}-{month:02}-{day:02}"]
        ),
        "x": f"{draw.uniform(0.1, 99):.{draw.randint(0, 2)}f}",
        "big": digits(draw, draw.randint(9, 16)),
        "mobile": f"1{draw.choice('3456789')}{digits(draw, 9)}",
        "d8": digits(draw, 8),
        "wrong": wrong_id_card(draw),
    }
    return written[key]


def wrong_id_card(draw: random.Random) -> str:
    """18 digits that are no ID card number: a wrong check digit, or a month that no year has."""
    number = f"{digits(draw, 6)}19{digits(draw, 2)}{draw.randint(13, 99)}{digits(draw, 6)}"
    return f"6{number[1:]}" if number[0] == "0" else number


NEGATIVE_LINES = """
WBC {x}×10^9/L，Hb {n}g/L，PLT 2{n}×10⁹/L，CRP {x}mg/L。
血钾{x}mmol/L，肌酐1{n}μmol/L，尿素{x}mmol/L。
HBV-DNA {mobile} IU/ml，较前下降。
标本号：{mobile}，采样时间{date}。
条码号 {big}，检验项目：血常规。
样本编号:{mobile}；检验者复核无误。
检验单号：{big}，报告时间 {date}。
试剂批号{d8}，有效期至{date}。
国药准字H{d8}，每片{n}mg。
申请单号：{big}，医嘱号：{big}。
高值耗材序列号{big}，条形码{wrong}。
诊断编码：I10.x05，E11.900，J18.9，K29.{n}。
ICD-10: I21.{n}; ICD-9-CM-3: 36.0{n}。
患者{date}于我院行阑尾切除术，术后第{n}天。
入院日期：{date}  出院日期：{date}  住院{n}天。
患者{age}岁，{sex}，BMI {x}kg/m²，{complaint}。
出生体重3{n}0g，Apgar评分9-10分，出生史无异常。
出生于2015年，母乳喂养；1岁{n}月会走。
患者高热{n}天，最高39.{n}℃，伴寒战。
患者常于夜间发作，严重时不能平卧，{finding}。
患者于{date}无明显诱因出现{complaint}。
患者平素体健，白细胞{x}×10^9/L，{finding}。
患者全身皮肤黄染，巩膜黄染，{finding}。
患者安静时心率{n}次/分，温度36.{n}℃。
患者及家属拒绝手术，医生：再观察{n}天。
医生：方便的话{n}天后来复查。患者：好的，谢谢。
家属：同意；护士：明天空腹抽血{n}ml。
患者服何首乌{n}g、黄连素0.{n}g后腹泻{n}次。
予马来酸依那普利{n}mg、罗红霉素150mg、金水宝胶囊{n}粒。
予云南白药、马应龙麝香痔疮膏外用{n}天。
联系人：妻子。签名：同前。第{n}次随访。
床号：{n}床  科室：心血管内科  病区：东{n}病区
会诊科室：康复医学科、方便门诊，时间{date}。
否认{n}天内中高风险地区旅居史，居住于湖南省邵阳市。
生于湖北省武汉市，久居当地，吸烟{n}年。
转自某市第一人民医院3号楼{n}层，{finding}。
5号染色体短臂缺失，3号导管置入深度{n}cm。
急诊科1号诊室就诊，叫号{n}号，候诊{n}分钟。
LMP：{date}，孕{n}周，胎心14{n}次/分。
心率7{n}次/分，血压1{n}/86mmHg，呼吸20次/分，体温36.5℃。
胃镜（{date}）：慢性浅表性胃炎，Hp(+)，13C呼气试验DOB {x}‰。
氯化钠250ml+头孢曲松2.0g ivgtt qd×{n}天，共{n}次。
急救电话120，卫生热线12320，住院{n}天。
王浆过敏，李斯特菌培养阴性，张力性气胸已排除，第{n}日。
全程化疗{n}周期，时有恶心，单纯性囊肿{x}cm。
范围{x}-{x}，参考值3.5-5.{n}，单位mmol/L，流水号{big}。
文献：PMID: {d8}，DOI 10.1056/NEJMoa{d8}，注册号NCT{d8}。
Hb {x} g/dL, WBC {x}, Na 1{n} mmol/L, eGFR {n} mL/min.
Specimen number: {mobile}; accession {big}; lot {d8}.
Metformin {n}0 mg twice daily, lisinopril {n} mg, MS Contin {n} mg.
ICD-10 codes: E11.9, I10, Z79.{n}; CPT 99{n}3.
The patient is a {age}-year-old man with {ecomplaint}; {efinding}.
Patient: Denies chest pain. Doctor: Any fever in the last {n} days?
Patient: Yes, about {n} times. Doctor: Thank you.
Drug Name: Lisinopril {n} mg. Test Name: Hemoglobin A1c {x} %.
Hospital course: seen by Cardiology on {edate}; discharged after {n} days.
Admission date: {edate}. Discharge date: {edate}. Length of stay {n} days.
Crohn disease, Parkinson's disease, Graves' disease, Bell's palsy; Murphy sign negative ({n}).
Mother: Breast Cancer at age {n}. Father: Type 2 Diabetes.
Attending: Cardiology Service. Contact: Isolation precautions for {n} days.
MR angiography and MR 1.5 T were normal on {edate}; slice {n}.
Apgar 8 and 9; birth weight 3.{n} kg; born at {n} weeks.
DOB not recorded; age {age}; BP 1{n}/80; HR {n}.
Take {n} tablets daily. Follow up in {n} weeks. Call 911 in an emergency.
Ref range {x}-{x}; serial number {big}; device model AB-{d8}.
CT {edate}: {n} mm nodule at 3 o'clock, 12 Fr drain, level {n}.
The Glasgow Coma Scale was {n}; Wells score {x}; PMID {d8}.
""".strip().splitlines()


def planted(records: int = 3000, seed: int = 4) -> list[Note]:
    """Notes of three to six lines, one language each, with every line equally often."""
    draw = random.Random(seed)
    notes = []
    for lines, share in ((CHINESE_LINES, 2 * records // 3), (ENGLISH_LINES, records // 3)):
        deck = itertools.cycle(draw.sample(lines, len(lines)))
        for _ in range(share):
            filled = [fill(next(deck), draw) for _ in range(draw.randint(3, 6))]
            filled.insert(
                draw.randrange(len(filled)), fill("{finding}。" if lines is CHINESE_LINES else "{efinding}.", draw)
            )
            notes.append(join(filled))
    return notes


def join(notes: list[Note]) -> Note:
    text, spans = "", []
    for line, found in notes:
        spans += [(kind, start + len(text), end + len(text)) for kind, start, end in found]
        text += line + "\n"
    return text, spans


def negatives(records: int = 2400, seed: int = 5) -> list[Note]:
    draw = random.Random(seed)
    deck = itertools.cycle(NEGATIVE_LINES)
    return [fill(next(deck), draw) for _ in range(records)]


# --- the score --------------------------------------------------------------------------------------------------------


def wilson(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, square = hits / count, z * z / count
    middle, spread = share + square / 2, z * math.sqrt(share * (1 - share) / count + square / count / 4)
    return (middle - spread) / (1 + square), (middle + spread) / (1 + square)


def score(notes: list[Note]) -> dict[str, Counter[str]]:
    """{kind: how many planted, found, findings, false alarms}."""
    counts: dict[str, Counter[str]] = {}
    for text, spans in notes:
        findings = find(text)
        for kind, start, end in spans:
            counts.setdefault(kind, Counter())["planted"] += 1
            counts[kind]["found"] += any(one.kind == kind and one.start <= start and end <= one.end for one in findings)
        for one in findings:
            counts.setdefault(one.kind, Counter())["findings"] += 1
            counts[one.kind]["false"] += not any(start < one.end and one.start < end for _, start, end in spans)
    return counts


def table(counts: dict[str, Counter[str]]) -> Iterator[str]:
    yield "| kind | planted | found | recall | findings | false alarms | precision |"
    yield "|---|---|---|---|---|---|---|"
    total: Counter[str] = sum(counts.values(), Counter())
    for kind, row in [*sorted(counts.items()), ("all", total)]:
        right = row["findings"] - row["false"]
        recall, precision = share(row["found"], row["planted"]), share(right, row["findings"])
        yield (
            f"| {kind} | {row['planted']:,} | {row['found']:,} | {recall} | {row['findings']:,} | "
            f"{row['false']:,} | {precision} |"
        )


def share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits / count:.4f} ({low:.4f}–{high:.4f})" if count else "–"


def halves() -> Iterator[tuple[str, list[Note]]]:
    yield "own", planted() + negatives()
    try:
        from bench import identifiers_blind
    except ImportError:
        return
    yield "blind", identifiers_blind.planted()


def speed(notes: list[Note]) -> float:
    """Records of 300 characters a second of one core, the notes one after another and cut at every 300."""
    text = "".join(text + "\n" for text, _ in notes)
    records = [text[start : start + 300] for start in range(0, len(text), 300)]
    begin = time.process_time()
    for record in records:
        find(record)
    return len(records) / (time.process_time() - begin)


def main() -> None:
    for name, notes in halves():
        empty = sum(not spans for _, spans in notes)
        print(f"\n### {name} half: {len(notes):,} texts, {empty:,} of them without any identifier\n")
        print(*table(score(notes)), sep="\n")
    samples = [
        (row["feature_content"], []) for _, row in read_rows("data/samples/camp_data_step_1_without_answer.jsonl")
    ]
    for name, notes in (("dense with identifiers", planted()), ("hard negatives", negatives()), ("samples", samples)):
        print(f"\n{speed(notes):,.0f} records of 300 characters a second of one core, {name}")


if __name__ == "__main__":
    main()
