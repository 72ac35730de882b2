"""Wrong commands of every script: one line that names the key, the value and a remedy; exit code 2; nothing left.

Beside a table of them, settings are drawn at random: from the keys that there are and from values that nobody means.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from helpers import CONF, Command, configuration, small
from imago import capacity
from imago.cli import check_command
from imago.cli.explain import explain
from imago.config import check, plain
from imago.errors import UserError
from imago.images import ImageSpec
from imago.models.gan import GAN
from imago.training.run import build_model, build_trainer, remembered, train

ROOT = Path(__file__).parents[2]
LONG = "x" * 300
TINY = ["metrics=none", "logger=none", "callbacks=minimal", "trainer=cpu", "max_updates=1", "max_seconds=20"]

# A command as in a shell, and what its line says; RUN is the directory of a run.
COMMANDS: dict[str, str] = {
    # -- names: folders inside logs
    "train name=5": r"name=5: input should be a valid string; .*quoted twice: name=\"'TEXT'\"",
    "train name=1_1": r"name=11: input should be a valid string",
    "train name=true": r"name=true: input should be a valid string",
    "train name=nan": r"name=nan: must be a finite number",
    "train name=[a]": r'name=\["a"\]: input should be a valid string',
    "train name={a:1}": r"name=.*valid string",
    "train name=": r"name=: names a folder inside logs",
    f"train name={LONG}": r"name=x{95}…x+: 300 bytes; give a name of at most 128",
    "train name=../up": r"name=\.\./up: names a folder inside logs; give a name without slashes",
    "train name=/proc/evil": r"name=/proc/evil: names a folder inside logs",
    "train name=a/b": r"name=a/b: names a folder inside logs",
    r"train name=a\\\\b": r"name=a.*b: names a folder inside logs",
    "train name=..": r"name=\.\.: begins with a dot",
    "train name=.hidden": r"name=\.hidden: begins with a dot",
    "train name=-x": r"name=-x: begins with",
    """train 'name="a\x01b"'""": r"name=a\\x01b: holds a control character; leave it out",
    """train 'name="a\nb"'""": r"name=a\\nb: holds a control character; leave it out",
    """train 'name="a\x1b[31mb"'""": r"name=a\\x1b\[31mb: holds a control character; leave it out",
    "train 'name=\"a\u202eb\"'": r"name=a\\u202eb: holds a control character; leave it out",
    "train 'name=${name}'": r"name: .*Recursive interpolation",
    # -- places
    "train logs=2024": r"logs=2024: input should be a valid string",
    "train logs=": r'logs="": string should have at least 1 character',
    "train logs=afile": r"logs=afile: afile is no folder; choose another place",
    "train logs=afile/below": r"logs=afile/below: .*choose another place",
    "train logs=dangling": r"logs=dangling: dangling is no folder",
    "train logs=/proc": r"logs=/proc: cannot be written \(.*\); choose another place",
    f"train logs={LONG}": r"logs=.*: cannot be written \(File name too long\)",
    "train resume=pipe": r"resume=pipe: a pipe.* or a .*; a checkpoint is",
    "train resume=/dev/zero": r"resume=/dev/zero: a pipe.* or a .*; a checkpoint is",
    "train resume=dangling": r"resume=dangling: no such file or folder",
    "sample checkpoint=RUN out=/dev/null": r"out=/dev/null: is a file, and a name without",
    "sample checkpoint=RUN out=pipe": r"out=pipe: is a file, and a name without a suffix means a folder",
    "sample checkpoint=RUN out=pipe.png": r"out=pipe\.png: is a pipe or a device",
    f"sample checkpoint=RUN out={LONG}.png": r"out=.*: cannot be written \(File name too long\); choose another place",
    f"sample checkpoint=RUN out={LONG}": r"out=.*: cannot be written \(File name too long\); choose another place",
    "sample checkpoint=RUN out=": r'out="": string should have at least 1 character',
    "sample checkpoint=RUN out=.png": r"out=\.png: cannot write nameless files; give a name ending in \.png",
    "sample checkpoint=RUN out=nope/x.png": r"out=nope/x\.png: there is no folder nope; create it",
    "sample checkpoint=RUN out=/proc/x.png": r"out=/proc/x\.png: cannot be written",
    "sample checkpoint=RUN out=RUN/curves.png": r"out=.*/curves\.png: belongs to the run in .*; give another name",
    "sample checkpoint=RUN out=RUN/checkpoints": r"out=.*: a folder with files in it and no settings\.json",
    "sample checkpoint=RUN out=RUN": r"out=.*: a folder with files in it and no settings\.json",
    "figure checkpoint=RUN out=RUN/curves.png": r"out=.*/curves\.png: belongs to the run",
    "figure checkpoint=RUN out=adir": r"out=adir: cannot write nameless files; give a name ending in",
    "figure checkpoint=RUN out=pipe.png": r"out=pipe\.png: is a pipe or a device",
    "train_classifier out=adir": r"out=adir: is a folder; give another name",
    "train_classifier out=pipe": r"out=pipe: is a pipe or a device",
    "train_classifier out=/dev/full": r"out=/dev/full: is a pipe or a device",
    "train_classifier out=nope/x": r"out=nope/x: there is no folder nope",
    "train_classifier out=RUN/summary.json": r"out=.*/summary\.json: belongs to the run in",
    "train_classifier out=RUN/checkpoints/last.ckpt": r"out=.*/last\.ckpt: belongs to the run in",
    "compare runs=RUN out=afile": r"out=afile: afile is no folder; choose another place",
    "compare runs=RUN out=pipe": r"out=pipe: pipe is no folder; choose another place",
    "compare runs=RUN out=dangling": r"out=dangling: dangling is no folder; choose another place",
    "compare runs=RUN out=": r'out="": string should have at least 1 character',
    "compare runs=nowhere": r"runs=nowhere.*name the folder that holds yours",
    "compare runs=[]": r"runs=\[\]: .*at least 1",
    "compare runs=5": r"runs=5: .*quoted twice",
    "compress checkpoint=RUN": r"checkpoint: a GAN cannot code images: .* models that do are conv_vae, ",
    "compress checkpoint=RUN out=adir": r"out=adir: is a folder; give another name",
    "compress checkpoint=RUN decode=pipe": r"decode=pipe: is no regular file; give a file that compress wrote",
    "export checkpoint=RUN": r"out: missing; give out=",
    "export checkpoint=RUN out=afile": r"out=afile: afile is no folder; choose another place",
    "export checkpoint=RUN out=RUN": r"out=.*: has files in it that are no exported model; choose another folder",
    "export checkpoint=RUN out=x license=": r'license="": string should have at least 1 character',
    "sample checkpoint=gan-digit": r"checkpoint=gan-digit: no such file.*did you mean gan-digits\?",
    "compress": r"checkpoint: missing; give checkpoint=logs/NAME",
    "distance digits digits out=adir": r"out=adir: is a folder; give another name",
    "distance a=digits b=digits out=RUN/summary.json": r"out=.*/summary\.json: belongs to the run in",
    "dashboard out=adir": r"out=adir: is a folder",
    "dashboard out=afile/x.json": r"out=afile: afile is no folder; choose another place",
    "dashboard out=pipe": r"out=pipe: is a pipe or a device",
    # -- sizes that no machine has
    "train model.latent=1000000000000": r"model\.latent=.*less than or equal to 1000000",
    "train model.generator.hidden=[1000000000]": r"model\.generator\.hidden=.*less than or equal to 1000000",
    "train model.generator.hidden=[900000,900000]": r"model: (the memory is not enough|.* GB are free; make)",
    "train model=pixelcnn model.blocks=1000000000": r"model: a network of more than 10,000 parts; make it smaller",
    "train model=pixelcnn model.features=100000000": r"model\.features=.*less than or equal to 1000000",
    "train model=made model.hidden=[1000000000]": r"model\.hidden=.*less than or equal to 1000000",
    "train model=ddpm model.steps=1000000000": r"model\.steps=1000000000: input should be less than or equal to 100000",
    "train data.batch_size=1000000000": r"data\.batch_size=1000000000: .*Set data\.batch_size to 1437 or less",
    "train max_images=1000000000000000000000000": r"max_images=1000000000000000000000000: more than 64 bits",
    "train callbacks=default callbacks.samples.columns=100000000": r"columns=100000000: .*less than or equal to 256",
    "train -m 'seed=range(0,100000000)'": r"-m: 100,000,000 runs are more than the 10,000 of one command",
    "train -m 'seed=range(5,0)'": r"seed=range\(5,0\): no values, so there is nothing to run",
    "sample checkpoint=RUN n=1000000000000": r"n=1000000000000: needs .* bytes of memory, and there is room for",
    "sample checkpoint=RUN n=1000000000000 out=folder": r"n=1000000000000: needs .* there is room for .*; draw fewer",
    "sample checkpoint=RUN n=1000000000000000000000000": r"n=1000000000000000000000000: more than 64 bits",
    "evaluate checkpoint=RUN metrics.samples=1000000000000": r"metrics\.samples=.*less than or equal to 1000000",
    "evaluate checkpoint=RUN repeats=1000000000": r"repeats=1000000000: .*less than or equal to 10000",
    "figure figure=manifold checkpoint=RUN figure.side=1000000": r"figure\.side=1000000: .*less than or equal to 256",
    "figure figure=receptive_field figure.shape=[1,100000,100000]": r"figure\.shape=.*less than or equal to 1024",
    # -- devices and trainers
    "train trainer.devices=abc": r"devices=\"abc\": input should be 'auto' or .* array or .* integer",
    "train trainer.devices=-1": r"trainer\.devices=-1: of a CPU give the number of processes",
    "train trainer.devices=[0,0]": r"trainer\.devices=\[0, 0\]: of a CPU give the number of processes",
    "train trainer.devices=[]": r"trainer\.devices=\[\]: .*at least 1 item",
    "train trainer.devices=null": r"trainer\.devices=null: .*valid integer",
    "train trainer.devices=1.5": r"trainer\.devices=1\.5: .*valid integer",
    "train trainer.accelerator=tpu": r"accelerator=\"tpu\": input should be 'auto', 'cpu', 'gpu', 'cuda' or 'mps'",
    "train trainer.accelerator=[cpu]": r"trainer\.accelerator=.*: input should be 'auto', 'cpu'",
    "train trainer=ddp trainer.accelerator=cpu trainer.devices=-1": r"trainer\.devices=-1: of a CPU give the number",
    "train trainer=ddp trainer.accelerator=cpu trainer.strategy=fsdp": r"strategy=\"fsdp\": string should match .*ddp",
    "train trainer=ddp trainer.accelerator=cpu +trainer.num_nodes=3": r"num_nodes=3: nothing says where the other mach",
    "train +trainer.num_nodes=0": r"trainer\.num_nodes=0: input should be greater than 0",
    "train trainer.precision=[]": r"trainer\.precision=\[\]: input should be '32-true' or 'bf16-mixed'",
    "sample checkpoint=RUN device=abc": r"device=abc: .*; choose another one, or device=null",
    "sample checkpoint=RUN device=meta": r"device=meta: .*; choose another one, or device=null",
    "sample checkpoint=RUN device=xla": r"device=xla: this PyTorch cannot use it; choose another one",
    "sample checkpoint=RUN device=": r"device=: .*choose another one, or device=null",
    "evaluate checkpoint=RUN device=-1": r"device=-1: input should be a valid string",
    # -- groups, options and what Hydra is given
    "train callbacks=null": r"callbacks=null: names no choice; choose one of default, minimal",
    "train -m model=ddpm,ncsn model/network=mlp": r"model/network=mlp: .*write model/network=choice\(mlp\)",
    "train model=null": r"model=null: names no choice; choose one of autoencoder, ",
    "prepare out=x": r"data\.path: missing|data\.path.*give",
    "prepare data.path=nowhere out=x": r"data\.path=nowhere: there is no such folder, zip or tar file",
    "prepare data.path=. data.size=0 out=x": r"data\.size=0: .*greater than 0",
    "prepare data.path=. data.fit=shrink out=x": r"data\.fit=.?shrink.?: input should be .crop. or .stretch.",
    "train data=stream": r"data\.path is missing: .*data=stream the folder of shards that prepare wrote",
    "train_classifier data=null out=x": r"data=null: names no choice; choose one of bars, ",
    "train model=": r"model=.*choose one of autoencoder",
    "train ~model": r"model: nothing chosen; choose one of autoencoder",
    "train ~trainer": r"trainer: nothing chosen; choose one of auto, cpu",
    "train ~seed": r"data\.seed: Interpolation key 'seed' not found; give it a value",
    "train +x=1": r"x: no such setting; known are",
    "train recipe=nope": r"recipe=nope: no such setting; known here are",
    # -- what others write
    "train batch_size=32": r"batch_size=32: no such setting; did you mean data\.batch_size=32",
    "train lr=0.001": r"did you mean model\.optimizer\.(discriminator|generator)\.lr=0\.001 or model\.optimizer\.",
    "train model=vae learning_rate=0.1": r"did you mean model\.optimizer\.net\.lr=0\.1\?",
    "train +batch_size=32": r"batch_size: no such setting; did you mean data\.batch_size\?",
    "train optimizer=sgd": r"choose with model/optimizer/discriminator=sgd or model/optimizer/generator=sgd$",
    "train model=vae model/optimizer=sgd": r"model/optimizer=sgd: choose with model/optimizer/net=sgd$",
    "train model=vae model/optimizer/decoder=adam": r"model=vae has no group model/optimizer/decoder; its own are ",
    "train epochs=5": r"epochs=5: .*max_images, max_updates or max_seconds",
    "train trainer.max_epochs=5": r"trainer\.max_epochs=5: .*use max_images, max_updates or max_seconds",
    "train trainer.benchmark=true": r"write \+trainer\.benchmark=true",
    "train --model=gan": r"--model=gan: settings have no dashes; write model=gan",
    "train --batch-size 32": r"--batch-size: no such option, .*KEY=VALUE; .*did you mean data\.batch_size=32",
    "train --model.latent=50": r"--model\.latent=50: settings have no dashes; write model\.latent=50",
    "train --model.latent 50": r"--model\.latent: settings have no dashes; write model\.latent=50",
    "train dataset=mnist": r"dataset=mnist: choose with data=mnist",
    "train noise@model.noise_schedule=cosine model=ddpm": r"choose with model/noise_schedule=cosine",
    "train +schedule@model.schedule=cosine": r"choose with model/schedule=cosine",
    "train -m hydra/launcher=ray": r"hydra/launcher=ray: .*pip install hydra-ray-launcher",
    "train hydra/launcher=joblib": r"hydra/launcher=joblib: is for several runs; put -m behind the command's name",
    "train hydra.sweeper.n_trials=5": r"hydra\.sweeper\.n_trials=5: is for several runs; put -m ",
    "train -m hydra/sweeper=ax": r"hydra/sweeper=ax: .*pip install hydra-ax-sweeper",
    "train -m hydra/sweeper=optuna": r"objective: a search needs the number that it is for: objective=val/bpd",
    "train -m hydra/sweeper=optuna estimate=true seed=1,2": r"estimate=true: .*leave hydra/sweeper=optuna out$",
    "train -m hydra/sweeper=optuna objective=val/bpd": r"hydra/sweeper=optuna: nothing varies; give KEY=A,B",
    "train -m hydra/sweeper=optuna objective=val/bpd model.latnt=1,2": r"model\.latnt.*did you mean latent",
    "train -m hydra/sweeper=optuna objective=val/bpd seed=1,2 resume=auto": r"resume: a search goes on by itself",
    "train -m 'seed=interval(0,1)'": r"seed=interval\(0,1\): .*hydra/sweeper=optuna",
    "train model.generator._partial_=5": r"model\.generator\._partial_=5: true or false",
    "train =5": r"=5: nothing before the equals sign; write KEY=VALUE",
    "train ''": r"an empty argument; leave it out, or write KEY=VALUE",
    "train model.latent": r"model\.latent: cannot be read; write KEY=VALUE",
    "train 'name=my run (1)'": r"""name=my run \(1\): cannot be read; .*; as text 'name="my run \(1\)"'$""",
    "train name=é": r"""name=é: cannot be read; .*; as text 'name="é"'$""",
    "train model=gan,vae": r"model=gan,vae: several values; a run for each takes -m, a list is .*=\[gan,vae\]$",
    "train 'model.latent=\"'": r"cannot be read; write KEY=VALUE",
    "train 'model.latent={'": r"cannot be read; write KEY=VALUE",
    "train s\u0435ed=5": r"s\u0435ed=5: cannot be read; write KEY=VALUE",
    "train seed=\uff15": r"seed=\uff15: cannot be read; write KEY=VALUE",
    "train 'seed=${seed}'": r"seed: Recursive interpolation detected; give it a value",
    "train 'seed=${nope}'": r"seed: Interpolation key 'nope' not found; give it a value",
    "train 'seed=${oc.env:IMAGO_NOPE}'": r"seed: .*Environment variable 'IMAGO_NOPE' not found.*; give it a value",
    "train 'model.latent=${model}'": r"model\.latent: Interpolation to parent node detected; give it a value",
    "train model.latent=???": r"model\.latent: missing; give model\.latent=VALUE",
    "train max_seconds=nan": r"max_seconds=nan: must be a finite number; .* null says so",
    "train model.optimizer.generator.lr=inf": r"model\.optimizer\.generator\.lr=inf: must be a finite number",
    "train every=5": r"every.*; give it a value",
    "train tags=[1]": r"tags=\[1\]: input should be a valid string",
    "train --nope": r"unrecognized arguments: --nope; first options such as -m, .* KEY=VALUE",
    "train --cfg nope": r"argument --cfg/-c: invalid choice: .nope.*; first options",
    "train --resolve": r"The --resolve flag can only be used .*; --help and --hydra-help list",
    "train --config-name nowhere": r"nowhere.*",
    "train --config-dir nowhere": r"nowhere.*",
    "train hydra.mode=abc": r"hydra\.mode|abc",
    "train hydra/launcher=nope": r"hydra/launcher.*nope",
    "train logger=wandb logger.wandb.project=a/b": r'logger\.wandb\.project="a/b": string should match pattern',
    "train logger=wandb logger.wandb.mode=abc": r"mode=\"abc\": input should be 'auto', 'online', 'offline' or",
    "dashboard project=a/b": r'project="a/b": string should match pattern',
    "dashboard kind=page": r"kind=\"page\": input should be 'workspace' or 'report'",
    "sample": r"checkpoint: missing; give checkpoint=logs/NAME",
    "sample checkpoint=RUN n=0": r"n=0: input should be greater than 0",
    "sample checkpoint=RUN labels=[]": r"labels=\[\]: .*",
    "sample checkpoint=RUN labels=3": r"labels given to an unconditional model",
    "sample checkpoint=RUN temperature=1": r"temperature=1: a GAN has no temperature",
    "sample checkpoint=RUN +model.latent=5": r"model\.latent: belongs to how the model was trained",
    "sample checkpoint=RUN data=digits": r"data=digits: a group of train\.py, which this script does not have",
    "evaluate": r"checkpoint: missing; give checkpoint=logs/NAME",
    "evaluate checkpoint=RUN split=train": r"split=\"train\": input should be 'val' or 'test'",
    "evaluate checkpoint=RUN importance=5": r"importance=5: a GAN has no importance-weighted bound",
    "evaluate checkpoint=RUN metrics=null": r"metrics=null: names no choice; choose one of auto",
    "figure figure=nope": r"figure=nope: no such choice; choose one of arithmetic",
    "figure figure=null": r"figure=null: names no choice; choose one of arithmetic",
    "figure figure=completion checkpoint=RUN": r"figure=completion: cannot be drawn of .*, a GAN; give a checkpoint of",
    "figure figure=chains figure.snapshots=1": r"figure\.snapshots=1: .*greater than or equal to 2",
    "figure figure=receptive_field figure.shape=[1,0,8]": r"figure\.shape=.*greater than or equal to 1",
}


# More of train.py, as lists of overrides.
MISTAKES = [
    (["model=gam"], r"model=gam: no such choice; did you mean gan\? choose one of .*dcgan, .*gan"),
    (["model=gna"], r"model=gna: no such choice; did you mean gan\? "),
    (["data=cifar"], r"data=cifar: no such choice; did you mean cifar10\?"),
    (["modle=gan"], r"modle=gan: no such setting; did you mean model\?"),
    (["model.latant=3"], r"model\.latant=3: no such setting; .*latent"),
    (["+model.latant=3"], r"model\.latant: no such setting; did you mean latent\?"),
    (["+max_imagess=3"], r"max_imagess: no such setting; did you mean max_images\?"),
    (["seed=abc"], r'seed="abc": input should be a valid integer'),
    (["max_images=0"], r"max_images=0: input should be greater than 0"),
    (["max_images=null", "max_updates=null", "max_seconds=null"], r"max_images=null.*give at least one"),
    (["model.latent=-3"], r"model\.latent=-3: input should be greater than 0"),
    (["model.latent=many"], r'model\.latent="many": input should be a valid integer'),
    (["model.generator.hidden=7"], r"model\.generator\.hidden=7: input should be a valid array"),
    (["model.discriminator.dropout=1.5"], r"model\.discriminator\.dropout=1\.5: input should be less than 1"),
    (["model.optimizer.generator.lr=-1"], r"model\.optimizer: Invalid learning rate: -1"),
    (["model.optimizer.generator.lr=fast"], r'model\.optimizer\.generator\.lr="fast"'),
    (["data.batch_size=0"], r"data\.batch_size=0: input should be greater than 0"),
    (["data.batch_size=5000"], r"5000.*1,?437"),
    (["every.log=0"], r"every\.log=0: input should be greater than 0"),
    (
        ["model=dcgan", "model.generator.depth=9"],
        r"depth: 9 halvings do not fit into images of 8x8 pixels; give at most 3",
    ),
    (["data=mnist", "data.dir=nowhere"], r"nowhere"),
    (["data=bars", "conditional=true"], r"conditional=true: the data has no labels"),
    (["trainer.precision=16-mixed"], r"trainer\.precision=\"16-mixed\": input should be '32-true' or 'bf16-mixed'"),
    (["+trainer.gradient_clip_val=1"], r"trainer\.gradient_clip_val=1: has no effect.*model\.gradient_clip"),
    (["+trainer.accumulate_grad_batches=2"], r"accumulate_grad_batches=2: has no effect.*data\.batch_size"),
    (["model._target_=os.system"], r"model\._target_=os\.system: only .* can be constructed"),
    (["model.generator._target_=imago.nets.mlp.Nothing"], r"_target_=imago\.nets\.mlp\.Nothing: .*check the spelling"),
    (["resume=nowhere.ckpt"], r"^error: resume=nowhere\.ckpt: no such file"),
    ([f"resume={ROOT / 'README.md'}"], r"^error: resume=.*README\.md: no checkpoint of this program; a checkpoint is"),
    (
        ["model/schedule=cosine", "max_images=10", "model.schedule.warmup=20"],
        r"model\.schedule: end=10: must be larger",
    ),
    (["metrics=inception", "metrics.weights=nowhere.pth"], r"nowhere\.pth"),
    (["trainer=gpu"], r"trainer\.accelerator=gpu: this machine has no GPU; choose trainer=cpu or trainer=auto"),
    (["trainer=cpu", "trainer.devices=2"], r"trainer\.devices=2: for several processes choose trainer=ddp"),
    (["trainer.devices=0"], r"trainer\.devices=0: of a CPU give the number of processes"),
    (["+trainer.limit_train_batches=3"], r"trainer\.limit_train_batches: no such setting; known are"),
    (["model.generator.hidden=[]"], r"model\.generator\.hidden=\[\]: .*at least 1 item"),
    (["seed=5000000000"], r"seed=5000000000: input should be less than 4294967296"),
    (["+model.optimizer.generator.foreach=true"], r"model\.optimizer: .*fused.*foreach"),
    (["model.objective=hinge"], r"model\.objective=hinge: .*write model/objective=hinge"),
    (["model.optimizer.generator=sgd"], r"choose one with model/optimizer/generator=NAME"),
    (["objective@model.objective=hinge"], r"=hinge: choose with model/objective=hinge"),
    (["model/objective=hing"], r"model/objective=hing: no such choice; did you mean hinge\? choose one of hinge, "),
    (
        ["model/sampler=ddim"],
        r"^error: model/sampler=ddim: model=gan has no group model/sampler; its own are .*model/objective, "
        r".*; leave it out, or choose a model that has one: ddpm, flow_matching, ncsn$",
    ),
    (
        ["model/distribution=softmax"],
        r"model=gan has no group model/distribution; .* has one: .*made, masked_diffusion, pixelcnn",
    ),
    (
        ["model=vae", "model/noise_schedule=cosine"],
        r"model=vae has no group model/noise_schedule; .*, model/distr.*: ddpm$",
    ),
    (["model=vae", "penalty=r1"], r"^error: penalty=r1: model=vae has no group model/penalty; .*: dcgan, gan$"),
    (["sweep=lecture", "loss=hybrid"], r"^error: loss=hybrid: model=gan has no group model/loss"),
    (["model/optimizer/net=sgd"], r"has no group model/optimizer/net; its own are .*model/optimizer/generator"),
    (
        ["experiment=sngan", "model=gan"],
        r"^error: experiment=sngan model=gan: .* is for model=dcgan; leave .*: gan_digits, gan_mnist, gan_toy2d$",
    ),
    (
        ["model=ddpm", "experiment=wgan_gp"],
        r"^error: experiment=wgan_gp model=ddpm: .* is for model=dcgan; .*: ddpm_cifar10, ddpm_digits, ddpm_mnist$",
    ),
    (
        ["metrics=none", "metrics.samples=3"],
        r"metrics\.samples=3: no such setting; known here are extractor$",
    ),
    (["+penalty@model.penalty=r1"], r"choose with model/penalty=r1"),
    (["model.generator._target_=imago.files.write_text"], r"only classes of .* can be constructed"),
    (["model.generator._target_=imago.data.module.Path"], r"only classes of .* can be constructed"),
    (["model.latent="], r"latent"),
    (
        ["model.latent=[1,"],
        r"^error: model\.latent=\[1,: cannot be read; write KEY=VALUE, several values as KEY=\[A,B\]",
    ),
]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    return train(
        small(root, "callbacks=minimal", "max_images=16", "model.generator.hidden=[8]"), "run", root / "run"
    ).path


def everything(folder: Path) -> dict[str, Any]:
    """What lies below a folder, and when it was last changed."""
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


TABLE = [(shlex.split(command), message) for command, message in COMMANDS.items()]
TABLE += [(["train", *overrides], message) for overrides, message in MISTAKES]


@pytest.mark.parametrize(("command", "message"), TABLE, ids=[" ".join(command)[:60] for command, _ in TABLE])
def test_a_wrong_command_ends_in_one_line(
    command: list[str], message: str, a_run: Path, script: Command, tmp_path: Path
) -> None:
    Path("adir").mkdir()
    Path("afile").touch()
    Path("dangling").symlink_to("nowhere")
    for name in ("pipe", "pipe.png"):
        os.mkfifo(name)
    before = everything(tmp_path) | everything(a_run)
    name, *arguments = [part.replace("RUN", str(a_run)) for part in command]
    tiny = TINY if name == "train" else []
    code, _, err = script(name, *([*arguments, *tiny] if arguments[:1] == ["-m"] else [*tiny, *arguments]))
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert len(lines[0]) < 1000
    assert everything(tmp_path) | everything(a_run) == before, "nothing was made, and nothing was touched"


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 200
    assert {command[0] for command, _ in TABLE} == {path.stem for path in (ROOT / "src").glob("*.py")}


@pytest.mark.parametrize("estimate", ["false", "true"])
def test_of_a_run_that_cannot_make_its_first_update_nothing_is_left(
    script: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, estimate: str
) -> None:
    for folder in ("points", "data"):
        Path(folder).mkdir()
    for k in range(6):
        Image.new("L", (1, 1), k).save(f"points/{k}.png")
    given = ["model=dcgan", "data=folder", "data.path=points", f"data.dir={tmp_path / 'data'}", "data.batch_size=1"]
    code, _, err = script("train", *TINY, *given, f"estimate={estimate}")
    assert code == 2
    assert "error: data.batch_size: too small for batch normalisation" in err.splitlines()[-1]
    assert not Path("logs").exists()

    def losses(self: GAN, *given: object) -> None:
        self.state.updates += started
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GAN, "losses", losses)
    for started, code_then in ((0, 2), (1, 1)):
        code, _, err = script("train", *TINY)
        assert code == code_then
        assert err.splitlines()[-1].startswith("error: the memory is not enough (CUDA out of memory); make the model")
        assert "Traceback" not in err
        assert Path("logs").exists() == bool(started), "of a run that made updates its directory tells how it ended"


# Beside the table: settings at random, out of the keys that there are and of values that nobody means.
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
NUMBERS = ["-1", "0", "1", "7", "-0.5", "0.5", "1e-300", "1e300", "nan", "inf", "-inf", "9999999", "4294967296"]
NUMBERS += [str(10**power) for power in (6, 9, 12, 18, 30, 400)]
TEXTS = [
    "abc",
    "''",
    "' '",
    '"a b"',
    "'x\x1b[2J'",
    "'\u202eevil'",
    "'\xe4\U0001f600'",
    "x" * 400,
    "../../up",
    "os.system",
]
TEXTS += [
    "null",
    "true",
    "false",
    "???",
    "${seed}",
    "${nope}",
    "${model}",
    "${oc.env:NOPE}",
    "${oc.create:{a:1}}",
    "${",
]
BROKEN = [
    "",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "a=b",
    "[1,",
    "{a:",
    "=",
    "@",
    "\\",
    "a:b",
    "choice(1,2)",
    "range(1,3)",
    "1,2",
]
VALUES = st.sampled_from(NUMBERS + TEXTS + BROKEN) | st.integers().map(str) | st.floats().map(str)
VALUES |= st.lists(st.sampled_from(NUMBERS + TEXTS), max_size=3).map(lambda items: f"[{','.join(items)}]")
VALUES |= st.sampled_from(NUMBERS + TEXTS).map(lambda item: "{a:" + item + "}")
GROUPS = ["model", "data", "trainer", "metrics", "logger", "callbacks", "experiment", "sweep"]
GROUPS += [
    "model/optimizer/net",
    "model/objective",
    "model/penalty",
    "model/sampler",
]
CHOICES = sorted({path.stem for path in [*CONF.glob("*/*.yaml"), *CONF.glob("model/*/*.yaml")]})
SPEC = ImageSpec(1, 8, 8, 256, 10)


def leaves(node: Any, key: str = "") -> Iterator[str]:
    """Every key of a configuration, those of groups too."""
    if key:
        yield key
    if isinstance(node, dict):
        for name, item in node.items():
            yield from leaves(item, f"{key}.{name}" if key else name)


@functools.cache
def keys_of(model: str) -> list[str]:
    return sorted(leaves(configuration(f"model={model}")))


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """A model and one or two settings of it, wrong in all likelihood."""
    model = draw(st.sampled_from(MODELS))
    given = [f"model={model}"]
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["set"] * 8 + ["choose", "delete", "misspell"]))
        key = draw(st.sampled_from(keys_of(model)))
        if kind == "set":
            value = draw(st.sampled_from(["1", "2", "0.5", "true"]) | VALUES)
            given.append(draw(st.sampled_from(["", "", "", "", "+", "++"])) + f"{key}={value}")
        elif kind == "choose":
            given.append(f"{draw(st.sampled_from(GROUPS))}={draw(st.sampled_from(CHOICES) | VALUES)}")
        elif kind == "delete":
            given.append(f"~{key}")
        else:
            place = draw(st.integers(0, len(key) - 1))
            given.append(f"{key[:place]}{draw(st.sampled_from(['', '.', 'x', '[0]', '@', ' ']))}{key[place + 1 :]}=1")
    return given


def refusal(given: list[str]) -> str | None:
    """What the command line would say to overrides that come to a model, without training one; ``None`` if nothing."""
    try:
        check_command(given, "train")
        try:
            config = compose("train", given)
        except (AssertionError, TypeError, ValueError, AttributeError) as error:  # of Hydra itself: cli.run says it
            return " ".join(str(error).split()) or type(error).__name__
        values = plain(config)
        check(values)
        build_trainer(values)
        build_model(values, SPEC)
    except (HydraException, OmegaConfBaseException) as error:
        return explain(error, "train")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("optimizer", "remembers"), [("SGD", 0), ("Adam", 2)])
def test_memory_is_counted_with_what_the_optimizer_remembers(optimizer: str, remembers: int) -> None:
    assert remembered({"net": {"_target_": f"torch.optim.{optimizer}", "_partial_": True, "lr": 0.1}}) == remembers


def hold_random_overrides(monkeypatch: pytest.MonkeyPatch, examples: int) -> list[bool]:
    """Whatever is given is taken, or refused in one line; whether it was taken, for each example."""
    monkeypatch.setattr(capacity, "available_memory", lambda: 2**29)  # what could be built only slowly is too large
    monkeypatch.setattr(sys, "argv", ["train.py"])
    taken = []

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(overrides())
    def hold(given: list[str]) -> None:
        said = refusal(given)
        taken.append(said is None)
        if said is not None:
            assert said.strip(), given
            assert "\n" not in said, given
            assert "Traceback" not in said, given

    for model in MODELS:
        keys_of(model)  # before Hydra is initialised for all of them
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hold()
    return taken


def test_random_settings_are_taken_or_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = hold_random_overrides(monkeypatch, 50)
    assert 0 < sum(taken) < len(taken) / 2, "right ones are among them, and most are wrong"


@pytest.mark.slow
def test_a_thousand_random_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = hold_random_overrides(monkeypatch, 1000)
    print(f"{len(taken)} sets of overrides: {sum(taken)} taken, {len(taken) - sum(taken)} refused in one line")


@pytest.mark.slow
def test_random_settings_in_processes_of_their_own(tmp_path: Path) -> None:
    """train.py ends by itself, with 0, or with 2 or 1 (a loss that is none) and one line, and without a traceback."""
    ended: list[int] = []

    @settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(overrides())
    def hold(given: list[str]) -> None:
        folder = tmp_path / str(len(ended))
        folder.mkdir()
        command = [sys.executable, str(ROOT / "src" / "train.py"), *given[:1], "data=digits", *TINY, *given[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
        ended.append(done.returncode)
        assert done.returncode in (0, 1, 2), (given, done.stderr)
        assert "Traceback" not in done.stderr, (given, done.stderr)
        if done.returncode:
            assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, (given, done.stderr)
        if done.returncode == 2:
            assert not list(folder.iterdir()), given

    hold()
    print(f"{len(ended)} processes: {ended.count(0)} trained, {ended.count(2)} refused, {ended.count(1)} diverged")
