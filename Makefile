# The pipeline, read top to bottom. Each command can be pasted after `. .venv/bin/activate`.
# A recipe is a folder under recipes/; ARGS are key=value overrides: make train RECIPE=medcot ARGS="learning_rate=5e-5"

RECIPE ?= demo
ARGS ?=
PYTHON ?= python3

# What LLaMA-Factory takes only from the environment: no wandb key, no upload; no server on the network.
export WANDB_MODE ?= $(if $(WANDB_API_KEY)$(shell grep -ls api.wandb.ai ~/.netrc),online,offline)
export API_HOST ?= 127.0.0.1
export GRADIO_SERVER_NAME ?= 127.0.0.1
export GRADIO_ANALYTICS_ENABLED ?= False
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow download label data check train teach distill charts predict submission judge review pairs eval serve chat web export clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: .venv/installed  ## the whole pipeline on a CPU with a tiny model, in minutes
	rm -rf models/demo saves/demo data/demo/label
	python -m preprocess.build recipes/demo/data.yaml
	python -m preprocess.build recipes/demo/data.yaml dataset=demo_base output=data/demo/base think_from=none
	python -m recipes.demo.build_model data/demo/train.json models/demo/random
	WANDB_MODE=offline llamafactory-cli train recipes/demo/base.yaml
	WANDB_MODE=offline python -m preflight recipes/demo/train.yaml
	WANDB_MODE=offline llamafactory-cli train recipes/demo/train.yaml
	python -m preprocess.label recipes/demo/label.yaml
	python -m eval.predict recipes/demo/predict.yaml
	python -m eval.run recipes/demo/eval.yaml

download: .venv/installed recipes/$(RECIPE)/download.yaml  ## public data and base model, pinned by SHA-256
	python -m preprocess.download recipes/$(RECIPE)/download.yaml $(ARGS)

label: .venv/installed recipes/$(RECIPE)/label.yaml  ## a teacher labels records or answers questions, each once: base_url=… model=…
	python -m preprocess.label recipes/$(RECIPE)/label.yaml $(ARGS)

data: .venv/installed recipes/$(RECIPE)/data.yaml  ## records -> registered <think> data sets
	python -m preprocess.build recipes/$(RECIPE)/data.yaml $(ARGS)

check: .venv/installed recipes/$(RECIPE)/train.yaml  ## proves train.yaml and its data in seconds, before anything is loaded
	python -m preflight recipes/$(RECIPE)/train.yaml $(ARGS)

train: check  ## QLoRA by LLaMA-Factory; a second call goes on from the last checkpoint
	llamafactory-cli train recipes/$(RECIPE)/train.yaml $(ARGS)

teach: .venv/installed recipes/$(RECIPE)/distill.yaml  ## a teacher's distributions over the training rows, stored small; goes on where it stopped
	python -m distill.score recipes/$(RECIPE)/distill.yaml $(ARGS)

distill: .venv/installed recipes/$(RECIPE)/distill.yaml  ## the training with a teacher's distributions beside the labels (make teach first)
	python -m preflight recipes/$(RECIPE)/distill.yaml $(ARGS)
	python -m distill.train recipes/$(RECIPE)/distill.yaml $(ARGS)

charts: .venv/installed  ## the curves of a run as pictures: reports/RECIPE/charts
	python -m eval.charts saves/$(RECIPE)

predict: .venv/installed recipes/$(RECIPE)/predict.yaml  ## base and tuned model answer the held-out questions
	python -m eval.predict recipes/$(RECIPE)/predict.yaml $(ARGS)

submission: .venv/installed recipes/$(RECIPE)/predict.yaml  ## the competition's records diagnosed, in the official form, proven line by line
	python -m eval.submission recipes/$(RECIPE)/predict.yaml $(ARGS)

judge: .venv/installed recipes/$(RECIPE)/judge.yaml  ## an AI judge, both orders, answers alone: base_url=… model=…
	python -m eval.judge recipes/$(RECIPE)/judge.yaml $(ARGS)

review: .venv/installed recipes/$(RECIPE)/review.yaml  ## people compare the answers, blind, in a browser on this machine
	python -m eval.review recipes/$(RECIPE)/review.yaml $(ARGS)

pairs: .venv/installed recipes/$(RECIPE)/pairs.yaml  ## verdicts and votes -> preferences for DPO
	python -m eval.pairs recipes/$(RECIPE)/pairs.yaml $(ARGS)

eval: .venv/installed recipes/$(RECIPE)/eval.yaml  ## perplexity, instructions, diagnoses, verdicts: reports/RECIPE/index.html
	python -m eval.run recipes/$(RECIPE)/eval.yaml $(ARGS)

serve: .venv/installed recipes/$(RECIPE)/serve.yaml  ## an OpenAI-compatible server on 127.0.0.1:8000 (API_KEY=… asks for a key)
	llamafactory-cli api recipes/$(RECIPE)/serve.yaml $(ARGS)

chat: .venv/installed recipes/$(RECIPE)/serve.yaml  ## talk to the tuned model in a terminal; /help lists the commands
	@python -m chat.assistant --serve recipes/$(RECIPE)/serve.yaml $(ARGS)

web: .venv/installed recipes/$(RECIPE)/serve.yaml  ## LLaMA-Factory's own web chat, on 127.0.0.1:7860
	llamafactory-cli webchat recipes/$(RECIPE)/serve.yaml $(ARGS)

export: .venv/installed recipes/$(RECIPE)/export.yaml  ## base and adapter merged, with an Ollama Modelfile: models/RECIPE_merged
	llamafactory-cli export recipes/$(RECIPE)/export.yaml $(ARGS)

test: .venv/installed-dev  ## the fast tests; no network
	python -m pytest -m "not slow" $(ARGS)

test-slow: .venv/installed-dev  ## the rest: real training, real servers
	python -m pytest -m slow $(ARGS)

clean:  ## remove what the demo wrote; .venv and other recipes stay
	rm -rf data/demo models/demo models/demo_merged saves/demo reports/demo

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f'Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	python -m pip install --disable-pip-version-check -r requirements.txt -c constraints.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	python -m pip install --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@
