"""params.yaml: its keys, with their types and ranges. `load` reads the file and reports every mistake at once."""

import io
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from stages.runtime.errors import UserError

# --- types of values ---


def _check_regular_expression(value: object) -> object:
    """Reject text that is no regular expression: PEFT reads it as one, unless it is `all-linear`."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be all-linear, a list of names, or a regular expression ({error})") from error
    return value


def _read_class_name(value: object) -> object:
    """Turn an integer into text. Reject true and false: YAML reads yes and no without quotes as these."""
    if isinstance(value, bool):
        raise ValueError("must be text: quote a name such as 'yes' or 'no', which YAML reads as true and false")
    return str(value) if isinstance(value, int) else value


def _check_not_blank(name: str) -> str:
    name = name.strip()
    if not name or "\0" in name:
        raise ValueError("must not be blank and must not contain NUL")
    return name


def _reject_bool(value: object) -> object:
    """Reject true and false, which pydantic would read as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _must_be(allowed: str) -> WrapValidator:
    """One message for a type with several members: pydantic has one for each of them."""

    def check(value: object, validate_members: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate_members(value)
        except ValidationError as error:
            raise ValueError(f"must be {allowed}") from error

    return WrapValidator(check)


def _check_digest(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("must be the 64 hexadecimal digits that `download` prints, or null for no check")
    return value


Count = Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, BeforeValidator(_reject_bool), Field(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, BeforeValidator(_reject_bool), Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_reject_bool), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_reject_bool), Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
ClassName = Annotated[str, BeforeValidator(_read_class_name), AfterValidator(_check_not_blank)]
MaxLength = Annotated[int, BeforeValidator(_reject_bool), Field(ge=8, le=8192)]  # tokens
Digest = Annotated[str, BeforeValidator(_check_digest)]
AutoOrBool = Annotated[Literal["auto"] | bool, _must_be("auto, true or false")]
PLACEHOLDER = r"\{([^{}]+)\}"  # where a template has the text of a column


class Section(BaseModel):
    """A section of params.yaml. A number may be written as text: DVC's -S writes 2e-05, which YAML reads as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


FROM_HUB = "from_hub"  # value of `folder` for a model or data on the hub: a file that never changes, for DVC to watch


class Source(Section):
    """Where a model or a data set is: in `folder`, or on the hub as `name` at `revision`."""

    folder: Text
    name: Text | None
    revision: Text | None
    digest: Digest | None

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and value.startswith((".", "/", "~")):
            raise ValueError("must be a name on the hub: set a path as `folder`")
        return value

    @field_validator("name", "revision")
    @classmethod
    def _check_given(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("folder") == FROM_HUB:
            raise ValueError(f"must not be empty with folder: {FROM_HUB}")
        return value

    @field_validator("revision")
    @classmethod
    def _check_old_pin(cls, value: str | None) -> str | None:
        if value == "none" or (value is not None and re.fullmatch("[0-9a-f]{64}", value)):
            raise ValueError("must be a commit of the hub, or null: the digest of a folder's files is `digest` now")
        return value


class ModelSettings(Section):
    quantization: Literal["nf4", "none"]
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    hidden_act: Literal["gelu_pytorch_tanh", "gelu_new"] | None
    head_init: Literal["seeded", "random"]

    @field_validator("precision")
    @classmethod
    def _check_fp16(cls, value: str, info: ValidationInfo) -> str:
        if value == "fp16" and info.data.get("quantization") == "none":  # phi-2's attention overflows in float16
            raise ValueError("must be auto, bf16 or fp32 with quantization: none (fp16 is only for 4-bit products)")
        return value


class Model(ModelSettings, Source):
    """Where the model is, and how it is loaded."""

    @property
    def settings(self) -> ModelSettings:
        """How it is loaded."""
        return ModelSettings(**self.model_dump(include=set(ModelSettings.model_fields)))


MAX_CLASSES = 1000  # a label column with more values is the wrong column


def _check_classes(names: list[str]) -> list[str]:
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"must name 2 to {MAX_CLASSES:,} classes")
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"must name each class once ({duplicate!r} is there twice)")
    return names


def _check_names(names: list[str]) -> list[str]:
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"must name each column once ({duplicate!r} is there twice)")
    return names


def _check_encoding(name: str) -> str:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name).read()  # as pandas opens a file: rejects rot13 and hex
    except (LookupError, UnicodeError, ValueError) as error:
        raise ValueError("must be the name of a text encoding, such as utf-8, cp1252 or utf-16") from error
    return name


def _check_holdout_size(value: object) -> object:
    """Accept a share such as 10%, or a number of rows."""
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,8}|[0-9]{1,2}(\.[0-9]{1,6})?%", str(value)):
        raise ValueError("must be a share such as 10%, or a number of rows")
    if str(value).endswith("%") and not 0 < float(str(value)[:-1]) < 100:
        raise ValueError("must be a share above 0% and under 100%")
    return str(value)


def _check_template(value: str) -> str:
    if not re.search(PLACEHOLDER, value):
        raise ValueError("must name a column of the data in braces, such as {text}")
    if "\\n" in value:  # from -S or single quotes; the model would read a backslash
        raise ValueError("must not contain a backslash and an n: write \\n in double quotes, with -S in $'…'")
    return value


Template = Annotated[Text, AfterValidator(_check_template)]
Encoding = Annotated[Text, AfterValidator(_check_encoding)]
HoldoutSize = Annotated[str, BeforeValidator(_check_holdout_size)]
Classes = Annotated[list[ClassName], AfterValidator(_check_classes)]


LabelColumns = Annotated[list[Text], Field(min_length=2, max_length=MAX_CLASSES), AfterValidator(_check_names)]


class Read(Section):
    """How csv and tsv files are written: arguments of `pandas.read_csv`."""

    sep: Annotated[str, Field(min_length=1, max_length=1, pattern=r"^[^\x00\r\n]$")] | None
    encoding: Encoding | None
    quotechar: Annotated[str, Field(min_length=1, max_length=1, pattern=r"^[^\x00\r\n]$")] | None
    names: Annotated[list[Text], Field(min_length=1), AfterValidator(_check_names)] | None


class Splits(Section):
    train: Text
    validation: Text | None
    test: Text | None


class Holdout(Section):
    """How many rows are held out of the training rows, as `stages.data.holdout` does it."""

    validation: HoldoutSize | None
    test: HoldoutSize | None
    seed: Seed
    columns: Annotated[list[Text], Field(min_length=1), AfterValidator(_check_names)] | None


class Data(Source):
    subset: Text | None
    read: Read
    split: Text | None
    splits: Splits
    holdout: Holdout
    duplicates: Literal["keep", "drop"]
    label: Annotated[Text | LabelColumns, _must_be("a column, or a list of 2 to 1,000 different columns of 0 and 1")]
    separator: Text | None
    classes: Classes | None
    group: Text | None
    train_rows: Count | None
    validation_rows: Count | None
    test_rows: Count | None
    unlabelled: Text

    @field_validator("separator", "classes")
    @classmethod
    def _check_label_columns(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and isinstance(info.data.get("label"), list):
            raise ValueError("must be empty if data.label is a list of columns, whose names are the classes")
        return value

    @field_validator("holdout")
    @classmethod
    def _check_holdout(cls, value: Holdout, info: ValidationInfo) -> Holdout:
        splits = info.data.get("splits")
        for split in ("validation", "test") if splits else ():
            named, size = vars(splits)[split], vars(value)[split]  # not as attributes: a test records what stages read
            if named is None and size is None:
                raise ValueError(
                    f"must have a size for {split}, such as 10%, because data.splits.{split} is empty; "
                    "or name the rows there"
                )
            if named is not None and size is not None:
                raise ValueError(f"must have no {split}, because data.splits.{split} names its rows; empty one of them")
        return value


class Tokenize(Section):
    template: Template
    max_length: MaxLength
    chat: bool
    system: Text | None

    @field_validator("system")
    @classmethod
    def _check_system(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("chat") is False:
            raise ValueError("must be empty with chat: false (only a chat template has a system message)")
        if value is not None and re.search(PLACEHOLDER, value):
            raise ValueError("must have no text in braces (only tokenize.template names columns)")
        return value


class Batches(Section):
    padding: Literal["none", "longest", "max_length"]
    multiple_of: Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=1024)]
    order: Literal["balanced", "grouped", "random"]


class Lora(Section):
    r: Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=1024)]
    alpha: Positive
    dropout: Fraction
    target_modules: Annotated[
        Text | Annotated[list[Text], Field(min_length=1)], BeforeValidator(_check_regular_expression)
    ]


# Keys of `train` that change no result. No stage depends on them, and a run resumes with other values.
NO_EFFECT_ON_RESULTS = {"checkpoint_minutes", "report_to"}


class Train(Section):
    epochs: Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=1000)]
    batch_size: Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=65536)]
    learning_rate: Annotated[float, BeforeValidator(_reject_bool), Field(gt=0, le=1e30)]  # float32 ends at 3e38
    schedule: Literal["linear", "cosine", "constant"]
    warmup_ratio: Fraction
    weight_decay: NotNegative
    max_grad_norm: Positive
    freeze_head: bool
    class_weights: Literal["balanced"] | None
    keep: Literal["best", "last"]
    calibrate: bool
    gradient_checkpointing: AutoOrBool
    micro_batch: Annotated[
        Literal["auto"] | Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=65536)],
        _must_be("auto, or a number of rows from 1 to 65,536"),
    ]
    cuda_graphs: bool
    dequantize_once: AutoOrBool
    checkpoint_minutes: Positive | None
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "dvclive"]

    def recipe(self) -> dict[str, Any]:
        """The values that determine the result."""
        return self.model_dump(exclude=NO_EFFECT_ON_RESULTS)


class Eval(Section):
    batch_size: Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=65536)]


Reference = Literal["majority_class", "bag_of_words", "zero_shot", "probe", "untrained_head"]


def _check_references(names: list[Reference]) -> list[Reference]:
    if not names or len(set(names)) < len(names):
        raise ValueError("must name at least one reference, and each of them once")
    return names


class Analysis(Section):
    confidence: Annotated[float, BeforeValidator(_reject_bool), Field(gt=0.5, lt=1, allow_inf_nan=False)]
    references: Annotated[list[Reference], AfterValidator(_check_references)]
    texts: Literal["all", "errors", "none"]


class Params(Section):
    device: Literal["cuda", "cpu"]
    launcher: Text
    threads: Annotated[int, BeforeValidator(_reject_bool), Field(ge=1, le=4096)] | None
    seed: Seed
    model: Model
    data: Data
    tokenize: Tokenize
    batches: Batches
    lora: Lora
    train: Train
    eval: Eval
    analysis: Analysis


# --- reading the file ---

AnySection = TypeVar("AnySection", bound=Section)


YAML_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's loader without three surprises.

    - resolve: yes, no, on, off and 12:30 are text, as in YAML 1.2. DVC reads them so, and
      `-S` removes their quotes.
    - construct_mapping: a key that occurs twice is an error. PyYAML uses the last of the two values.
    - construct_yaml_int: an integer with a leading zero is an error. PyYAML reads 010 as 8.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        is_yes_or_no = tag == f"{YAML_TAG}bool" and value.lower() not in ("true", "false")
        is_base_60 = tag in (f"{YAML_TAG}int", f"{YAML_TAG}float") and ":" in value
        return f"{YAML_TAG}str" if is_yes_or_no or is_base_60 else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    reason = f"the key {key.value} is there twice: remove one"
                    raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            reason = f"YAML reads {node.value} in base 8: quote it if it is a name, or remove the leading zero"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor(f"{YAML_TAG}int", _Loader.construct_yaml_int)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: one line with the file, each wrong key and what is allowed there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error})") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Params:
    """`load` of a text. The errors name the file `path`."""
    try:
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as 5000 digits or 1000 nested brackets
        raise UserError(f"{path}: not valid YAML ({error})") from error
    return validate(raw, Params, path)


def validate(values: object, section: type[AnySection], path: str | Path) -> AnySection:
    """Turn the values of a file into a section.

    Args:
        values: what was read from the file `path`.
        section: the class of the section. `Params` is the class of all of params.yaml.

    Raises:
        UserError: one line with the file, each wrong key and what is allowed there.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys with values, not {type(values).__name__}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first: dict[tuple, Any] = {}  # of each list only the first wrong item: a list may have 1,000
        for details in error.errors():
            first.setdefault(tuple(part for part in details["loc"] if not isinstance(part, int)), details)
        raise UserError(f"{path}: " + "; ".join(map(_describe, first.values()))) from error


REMOVED = {"watch": "no longer a key: remove it, and set model.folder and data.folder, whose files DVC watches"}
MISSING = {
    f"{section}.folder": f"missing: set a path, or {FROM_HUB} with {section}.name and {section}.revision"
    for section in ("model", "data")
}


def _describe(details: Any) -> str:
    """One of pydantic's errors (`ErrorDetails`): the key, what is wrong or allowed, and the value."""
    key = ".".join(str(part) for part in details["loc"] if not str(part).startswith(("constrained-", "function-")))
    if details["type"] == "missing":
        return f"{key}: {MISSING.get(key, 'missing')}"
    if details["type"] == "extra_forbidden":
        return f"{key}: {REMOVED.get(key, 'unknown key: correct or remove it')}"
    message = str(details["ctx"]["error"]) if details["type"] == "value_error" else details["msg"]
    return f"{key}: {message[0].lower()}{message[1:]}, not {_short.repr(details['input'])}"


class _ShortRepr(reprlib.Repr):
    """A value's repr, cut to 60 characters."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 10**1000 else "a number of over 1000 digits"


_short = _ShortRepr()
_short.maxstring = _short.maxlong = _short.maxother = 60
