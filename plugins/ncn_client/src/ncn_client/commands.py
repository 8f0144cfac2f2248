"""The commands that ask a gateway and check what it answers. What is slow to import is imported inside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

if TYPE_CHECKING:
    from ncn_framework.config import Config
    from ncn_framework.signing import Signer
    from ncn_framework.tensors import TensorSpec

    from .answers import Answer
    from .client import Client
    from .config import ClientSettings

__all__ = ["embed", "infer", "settled", "verify", "walkthrough"]

F = TypeVar("F", bound=Callable[..., Any])

_POLL_S = 0.5
"""How often ``ncn settled`` asks while it waits."""

_SHOWN = 5
"""Numbers of a vector that ``ncn embed`` prints."""

_save = click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the proof, for ncn verify."
)


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> bytes | None:
    from ncn_framework.signing import address_from_hex

    try:
        return None if value is None else address_from_hex(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


_node = click.option("--node", callback=_address, metavar="ADDRESS", help="Take only this node's answer.")
_ASKING = (
    click.option("--payment", type=click.Choice(("voucher", "escrow", "free")), help="Default: as the gateway likes."),
    click.option("--max-fee", "max_fee_wei", type=click.IntRange(0), metavar="WEI", help="Most that it may cost."),
    click.option("--wallet", metavar="NAME", help="Wallet whose key signs and pays; default: setting client.wallet."),
    click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), help="Seconds to wait."),
    _node,
    click.option("--gateway", metavar="URL", help="Gateway to ask; default: setting client.gateway."),
)


def _asking(command: F) -> F:
    """Add the options of a command that asks a gateway; ``_client`` takes them."""
    for option in reversed(_ASKING):
        command = option(command)
    return command


@click.command(short_help="Ask a model; the answer is verified here.")
@click.argument("model")
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="An input; @FILE reads a file.")
@click.option("--json", "form", type=click.File("rb"), metavar="FILE", help="All inputs as one JSON object; -: stdin.")
@click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--limit-units", type=click.IntRange(1), help="Most units to pay for.")
@_save
@_asking
def infer(
    model: str,
    inputs: tuple[str, ...],
    form: BinaryIO | None,
    parameters: tuple[str, ...],
    limit_units: int | None,
    save: Path | None,
    **asking: Any,
) -> None:
    """Ask MODEL (name or digest) and print its outputs as JSON, one line for each chunk.

    The answer is verified before it is printed: hash chain, receipt, signature, outputs against the manifest.
    A VALUE is text where the model takes text, else JSON: a number or a list. @FILE is the file's content:
    one text, or the raw little-endian data. An input of texts may be given several times.

    \b
    ncn infer minilm --input text="a sentence" --input text="another"
    ncn infer mlp --json inputs.json --save answer.json
    echo '{"text": ["a sentence"]}' | ncn infer minilm --json -
    """
    from ncn_framework.wire.json import encode, tensor_json

    values: dict[str, Any] = _json_object(form.read()) if form else {}
    with _client(**asking) as client:
        specs = {spec.name: spec for spec in client.model(model).manifest.inputs}
        for text in inputs:
            name, value = _pair("--input", text)
            _add(values, name, _value(specs.get(name), name, value))
        options: dict[str, Any] = {"limit_units": limit_units} if limit_units else {}
        options["parameters"] = {name: _scalar(value) for name, value in (_pair("-p", text) for text in parameters)}
        answer = client.infer(model, values, **options)
    for part in answer.parts:
        click.echo(encode({"outputs": [tensor_json(tensor, "json") for tensor in part.values()]}))
    _write(answer, save)
    click.echo("\n".join(_summary(answer)), err=True)


@click.command(short_help="Ask for the embeddings of texts; verified here.")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--model", default="minilm", show_default=True, help="Name or digest of a model of embeddings.")
@click.option("--json", "as_json", is_flag=True, help="Whole vectors, as one JSON list of lists.")
@_save
@_asking
def embed(texts: tuple[str, ...], model: str, as_json: bool, save: Path | None, **asking: Any) -> None:
    """Embed each TEXT: print the first numbers of its vector, and what proves them.

    \b
    ncn embed "a sentence"
    ncn embed "one" "two" --json > vectors.json
    ncn embed "a sentence" --wallet alice --max-fee 1000000000000000
    ncn embed "a sentence" --save answer.json && ncn verify answer.json
    """
    with _client(**asking) as client:
        answer = client.embed(texts, model)
    vectors = answer.vectors
    if as_json:
        click.echo(json.dumps(vectors))
    else:
        for text, vector in zip(texts, vectors, strict=True):
            numbers = " ".join(f"{number:+.4f}" for number in vector[:_SHOWN])
            more = " ..." if len(vector) > _SHOWN else ""
            click.echo(f"[{numbers}{more}]  {len(vector)} numbers  {_plain(text[:60])!r}")
        click.echo("\n".join(_summary(answer)))
    _write(answer, save)


@click.command(short_help="Check a saved answer, offline.")
@click.argument("file", type=click.File("rb"))
@_node
def verify(file: BinaryIO, node: bytes | None) -> None:
    """Check the saved answer in FILE (- is standard input) without asking anybody.

    One line for each check that passes. Exit status 0 if all do; else 1, with the place and what is wrong there.
    That the node is one to trust is for you to say, with --node.

    \b
    ncn verify answer.json
    ncn verify answer.json --node 0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A
    """
    from ncn_framework.proof import MAX_PROOF_BYTES
    from ncn_framework.proof import verify as check

    check(file.read(MAX_PROOF_BYTES + 1), node=node, report=lambda line: click.echo(f"ok  {_plain(line)}"))
    click.echo("verified" if node else "verified; any node was accepted, name the one that you trust with --node")


@click.command(short_help="Add the validators' signatures to a saved answer.")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--wait", "wait_s", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="How long to wait.")
@click.option("--gateway", metavar="URL", help="Gateway to ask; default: setting client.gateway.")
def settled(file: Path, wait_s: float, gateway: str | None) -> None:
    """Ask the gateway in which batch the saved answer in FILE was settled, check it, and add it to FILE.

    Receipts are settled in batches, which a committee of validators checks and signs behind the answers; by then, the
    file proves who signed, and ncn verify prints it. Exit status 1 where the batch is not on chain yet.

    \b
    ncn settled answer.json --wait 60 && ncn verify answer.json
    """
    import time

    from ncn_framework.errors import TaskEnded
    from ncn_framework.proof import MAX_PROOF_BYTES
    from ncn_framework.proof import verify as check

    with file.open("rb") as opened:
        proof = check(opened.read(MAX_PROOF_BYTES + 1))
    until = time.monotonic() + wait_s
    with _client(None, None, None, None, None, gateway) as client:
        while True:
            try:
                whole = client.settled(proof)
                break
            except TaskEnded:
                if time.monotonic() >= until:
                    raise
                time.sleep(_POLL_S)
    _replace(file, whole.to_json())
    inclusion = whole.inclusion
    if inclusion is not None:
        signed = f"{len(inclusion.signers)} of {len(inclusion.members)} validators of epoch {inclusion.batch.epoch}"
        click.echo(f"batch {inclusion.batch.nonce}, signed by {signed}; transaction 0x{inclusion.transaction.hex()}")


def _replace(path: Path, data: bytes) -> None:
    """Write a file anew, whole or not at all."""
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from error


@click.command("test-client", short_help="Walk the whole flow against a running network.")
@click.option("--model", help="Name or digest; default: the first one that is served, of texts if there is one.")
@_asking
def walkthrough(model: str | None, **asking: Any) -> None:
    """Walk the whole flow against a running network and print each step with what proves it.

    Exit status 0 if every step holds; else 1, with the step and what is wrong there.
    With --payment escrow, the request is paid on chain between two signatures of the validators.

    \b
    ncn test-client
    ncn test-client --payment escrow --wallet alice
    """
    from .walkthrough import walk

    with _client(**asking) as client:
        walk(client, model, lambda line: click.echo(_plain(line)))


def _client(
    payment: str | None,
    max_fee_wei: int | None,
    wallet: str | None,
    timeout_s: float | None,
    node: bytes | None,
    gateway: str | None,
) -> Client:
    """Return a client made of the settings; a domain other than the default is one to insist on."""
    from ncn_framework.config import Config
    from ncn_framework.models import Domain

    from .client import Client
    from .config import ClientSettings

    config = Config()
    settings, domain = config.load(ClientSettings), config.core.domain
    signer = _signer(config, settings, wallet)
    payment = payment or settings.payment or None
    pay = None
    if payment == "escrow" and signer is not None:
        from .paying import chain_payer

        pay = chain_payer(config, signer)
    return Client(
        gateway or settings.gateway,
        signer=signer,
        payer=_payer(settings),
        payment=payment,
        max_fee_wei=settings.max_fee_wei if max_fee_wei is None else max_fee_wei,
        pay=pay,
        domain=None if domain == Domain() else domain,
        node=node,
        timeout_s=timeout_s or settings.timeout_ms / 1000,
    )


def _signer(config: Config, settings: ClientSettings, wallet: str | None) -> Signer | None:
    """Return whose key signs: the wallet of a flag, the key or the wallet of the settings, the development client's."""
    from ncn_framework.signing import Signer

    from .keys import development_key, open_wallet

    key = settings.private_key.get_secret_value()
    if key and not wallet:
        return Signer.from_hex(key, "setting client.private_key")
    name = wallet or settings.wallet
    return open_wallet(config.home, name, lambda: _password(settings, name)) if name else development_key(config.home)


def _password(settings: ClientSettings, wallet: str) -> str:
    from ncn_framework.errors import WalletError

    password = settings.wallet_password.get_secret_value()
    if password:
        return password
    try:
        return str(click.prompt(f"Password of wallet {wallet!r}", hide_input=True, err=True))
    except click.Abort as cause:
        raise WalletError(
            f"the password of wallet {wallet!r} was not typed; type it, or set NCN_WALLET_PASSWORD"
        ) from cause


def _payer(settings: ClientSettings) -> bytes | None:
    from ncn_framework.errors import ConfigError
    from ncn_framework.signing import address_from_hex

    try:
        return address_from_hex(settings.payer) if settings.payer else None
    except ValueError as cause:
        raise ConfigError(f"setting client.payer: {cause}") from cause


def _write(answer: Answer, path: Path | None) -> None:
    if path is None:
        return
    try:
        answer.save(path)
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from error
    click.echo(f"saved {path}", err=True)


def _summary(answer: Answer) -> list[str]:
    from ncn_framework.signing import address_hex

    from .amounts import shown

    receipt, manifest = answer.receipt.receipt, answer.proof.manifest
    payment = answer.proof.request.payment
    if answer.voucher is not None:
        payment += f"; {answer.voucher.cumulative_wei} wei signed in all to {address_hex(answer.voucher.gateway)}"
    elif answer.settlement is not None and answer.settlement.reference:
        payment += f"; {_plain(answer.settlement.reference)}"
    return [
        f"model      {_plain(manifest.name)} 0x{receipt.model.hex()}",
        f"node       {address_hex(receipt.node)}",
        f"output     0x{receipt.output_hash.hex()}",
        f"cost       {receipt.units} units, {shown(receipt.fee_wei)}; {receipt.finished_ms - receipt.started_ms} ms",
        f"payment    {payment}",
        f"signature  ok, {len(answer.receipt.signatures)} on the receipt",
    ]


def _plain(text: str) -> str:
    """Return ``text`` without what a terminal would obey; names in a proof are anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)


# --- what is typed ---


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{option} {text!r} is not NAME=VALUE")
    return name, value


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise click.UsageError('--json is not an object of inputs, such as {"text": ["a sentence"]}')
    return found


def _value(spec: TensorSpec | None, name: str, text: str) -> Any:
    """Return what was typed as the model takes it; an unknown input is for the client to refuse."""
    if text.startswith("@"):
        try:
            return sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
        except OSError as error:
            raise click.FileError(text[1:], error.strerror or str(error)) from error
    if spec is None or spec.dtype == "BYTES":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(
            f"--input {name}: {text[:40]!r} is not JSON; a {spec.dtype} input takes a number or a list"
        ) from error


def _add(values: dict[str, Any], name: str, value: Any) -> None:
    """Add an input; one of texts that is given again becomes a list."""
    if name not in values:
        values[name] = value
        return
    have = values[name]
    if not isinstance(value, str | bytes) or not isinstance(have, str | bytes | list):
        raise click.UsageError(f"--input {name} is given twice; only texts may be")
    values[name] = [*have, value] if isinstance(have, list) else [have, value]


def _scalar(text: str) -> Any:
    """Return a parameter: a JSON number, true or false; anything else is a string."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str) else text
