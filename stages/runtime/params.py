"""params.yaml, read once and checked whole: types, ranges, no unknown key, no missing key."""

import re
import reprlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from stages.runtime.errors import UserError


def _regular_expression(value):
    """PEFT takes a text for one, but for its own word all-linear."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be all-linear, a list of names, or a regular expression ({error})") from error
    return value


def _class_name(value):
    """YAML takes no, yes, true and false without quotes for truth values, and 3 for a number."""
    if isinstance(value, bool):
        raise ValueError("must be text: quote a name such as 'yes' or 'no', which YAML reads as true and false")
    return str(value) if isinstance(value, int) else value


def _not_blank(name):
    name = name.strip()
    if not name or "\0" in name:
        raise ValueError("must not be blank, and hold no NUL")
    return name


def _number(value):
    if isinstance(value, bool):  # pydantic would take true for 1
        raise ValueError("must be a number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, BeforeValidator(_number), Field(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
ClassName = Annotated[str, BeforeValidator(_class_name), AfterValidator(_not_blank)]
PLACEHOLDER = r"\{([^{}]+)\}"  # a column's place in a template


class Section(BaseModel):
    """A group of keys. Numbers written as text are taken (DVC's -S writes 2e-05, which YAML reads as text)."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Model(Section):
    name: Text
    revision: Text
    quantization: Literal["nf4", "none"]
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    hidden_act: Literal["gelu_pytorch_tanh", "gelu_new"] | None
    head_init: Literal["seeded", "random"]

    @field_validator("precision")
    @classmethod
    def _fp16_needs_4_bits(cls, value, info):
        if value == "fp16" and info.data.get("quantization") == "none":  # phi-2's attention overflows in float16
            raise ValueError("is for the 4-bit products alone (with quantization: none allowed: auto, bf16, fp32)")
        return value


MAX_CLASSES = 1000  # more are no classes but another column


def _some_each_once(names):
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"must name 2 to {MAX_CLASSES:,} classes")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"must name each class once ({twice!r} stands twice)")
    return names


Classes = Annotated[list[ClassName], AfterValidator(_some_each_once)]


class Splits(Section):
    train: Text
    validation: Text
    test: Text


class Data(Section):
    name: Text
    subset: Text | None
    revision: Text
    splits: Splits
    label: Text
    classes: Classes | None
    group: Text | None
    train_rows: Count | None
    validation_rows: Count | None
    test_rows: Count | None
    unlabelled: Text


class Watch(Section):
    model: Text
    data: Text


class Tokenize(Section):
    template: Text
    max_length: Annotated[int, BeforeValidator(_number), Field(ge=8, le=8192)]

    @field_validator("template")
    @classmethod
    def _reads_a_column(cls, value):
        if not re.search(PLACEHOLDER, value):
            raise ValueError("must name a column of the data in braces, such as {text}")
        if "\\n" in value:  # -S and single quotes leave it so, and the model would read a backslash
            raise ValueError("must not hold a backslash and an n: in double quotes \\n is a new line, with -S in $'…'")
        return value


class Batches(Section):
    padding: Literal["none", "longest", "max_length"]
    multiple_of: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1024)]
    order: Literal["balanced", "grouped", "random"]


class Lora(Section):
    r: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1024)]
    alpha: Positive
    dropout: Fraction
    target_modules: Annotated[Text | Annotated[list[Text], Field(min_length=1)], BeforeValidator(_regular_expression)]


class Train(Section):
    epochs: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1000)]
    batch_size: Annotated[int, BeforeValidator(_number), Field(ge=1, le=65536)]
    learning_rate: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e30)]  # float32 ends at 3e38
    schedule: Literal["linear", "cosine", "constant"]
    warmup_ratio: Fraction
    weight_decay: NotNegative
    max_grad_norm: Positive
    freeze_head: bool
    class_weights: Literal["balanced"] | None
    keep: Literal["best", "last"]
    gradient_checkpointing: bool
    cuda_graphs: bool
    dequantize_once: Literal["auto"] | bool


class Eval(Section):
    batch_size: Annotated[int, BeforeValidator(_number), Field(ge=1, le=65536)]


class Analysis(Section):
    confidence: Annotated[float, BeforeValidator(_number), Field(gt=0.5, lt=1, allow_inf_nan=False)]


class Params(Section):
    device: Literal["cuda", "cpu"]
    launcher: Text
    threads: Annotated[int, BeforeValidator(_number), Field(ge=1, le=4096)] | None
    seed: Seed
    model: Model
    data: Data
    watch: Watch
    tokenize: Tokenize
    batches: Batches
    lora: Lora
    train: Train
    eval: Eval
    analysis: Analysis


class _Loader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys, and reads 010 as 8: here both are mistakes."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            reason = f"YAML reads {node.value} in base 8: quote it if it is a name, else leave out the zero"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check `path`.

    Raises:
        UserError: one line that names the file, each bad key and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error})") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number of 5000 digits, 1000 brackets
        raise UserError(f"{path}: not valid YAML ({error})") from error
    return validate(raw, Params, path)


def validate(values: object, group: type[Section], path: str | Path) -> Section:
    """The values of a file as a `group`.

    Args:
        values: what was read from the file `path`.
        group: a class of this module, or another `Section`.

    Raises:
        UserError: one line that names the file, each bad key and what is allowed.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold groups of keys, not {type(values).__name__}")
    try:
        return group.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(_complaint(e) for e in error.errors())) from error


def _complaint(error):
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "function-")))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, not {_short.repr(error['input'])}"


class _Short(reprlib.Repr):
    """A value in 60 characters, whatever it is."""

    def repr_int(self, value, level):
        return super().repr_int(value, level) if abs(value) < 10**1000 else "a number of over 1000 digits"


_short = _Short()
_short.maxstring = _short.maxlong = _short.maxother = 60
