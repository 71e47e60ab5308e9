"""A victim over HTTP against a real local server: honest, failing, stalling and lying; its log, its costs, its secrets."""

from __future__ import annotations

import copy
import email.utils
import json
import shutil
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparring as sp
from service import Handler, Service, serving
from sparring.cli import main
from sparring.core.attack import Attack
from sparring.core.errors import BudgetError, CapabilityError, InputError, LoadError, UnknownNameError, VictimError
from sparring.core.registry import make_attack
from sparring.data import load_digits, sample_picture
from sparring.victims import HTTPVictim
from sparring.victims.http_json import fill, follow, parse_path

SECRET = "s3cr3t-t0k3n/with+signs"
X, Y = load_digits("test")
RIGHT = (sp.load("digits").query(X).labels == Y).nonzero().squeeze(1)
X, Y = X[RIGHT], Y[RIGHT]


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    with serving() as server:
        yield server


@pytest.fixture
def service(running: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    running.reset()
    running.always = None
    monkeypatch.setenv("DIGITS_HOST", running.host)
    monkeypatch.setenv("DIGITS_TOKEN", SECRET)
    return running


def mapping(**changes: Any) -> dict[str, Any]:
    """A whole mapping, with `service__retries=0` and its like in place of what stands here."""
    told: dict[str, Any] = {
        "name": "digits-api",
        "service": {
            "url": "http://${DIGITS_HOST}/v1/${DIGITS_TOKEN}/predict?key=${DIGITS_TOKEN}",
            "headers": {"Authorization": "Bearer ${DIGITS_TOKEN}"},
            "timeout": 5,
            "retries": 2,
            "backoff": 0.01,
        },
        "input": {"encoding": "list", "shape": [1, 8, 8], "bounds": [0, 1]},
        "request": {"body": {"instances": "$inputs"}, "item": {"image": "$input"}, "batch": 16},
        "response": {"scores": "predictions[*].scores", "classes": [str(i) for i in range(10)]},
        "budget": {},
    }
    told = copy.deepcopy(told)
    for where, value in changes.items():
        table, _, key = where.partition("__")
        if key:
            told[table][key] = value
        else:
            told[table] = value
    return told


def everything_in(path: Path) -> bytes:
    """All that is written down: the log, and SQLite's files beside it."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(path.name + "*")))


# -- good answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nested lists", {}),
        ("a flat row", {"input__encoding": "row"}),
        ("channels last", {"input__layout": "hwc"}),
        ("PNG", {"input__encoding": "png"}),
        ("one by one", {"request": {"body": {"image": "$input"}}, "response__scores": "predictions[0].scores"}),
        (
            "PNG inside a text",
            {"input__encoding": "png", "request__item": {"image": "data:image/png;base64,$input"}},
        ),
        ("four at once", {"request__batch": 3, "service__concurrency": 4}),
        ("no classes", {"response": {"scores": "predictions[*].scores"}}),
    ],
)
def test_answers_are_those_of_the_network(service: Service, name: str, changes: dict[str, Any]) -> None:
    x = (X[:20] * 255).round() / 255
    victim = HTTPVictim(mapping(**changes))
    admitted, _ = victim.admit(x, Y[:20])
    answer, truth = victim.query(admitted), service.model.query(x)
    assert answer.scores is not None
    assert truth.scores is not None
    assert torch.equal(answer.labels, truth.labels)
    torch.testing.assert_close(answer.scores.softmax(1), truth.scores.softmax(1), atol=1e-5, rtol=1e-4)
    assert service.inputs == victim.spent.queries == len(victim.log) == 20
    assert service.requests == victim.spent.requests
    assert victim.classes == 10
    assert torch.equal(victim.query(admitted).labels, answer.labels)
    assert service.inputs == 20
    victim.close()


def test_levels_are_whole_numbers_on_the_wire(service: Service) -> None:
    victim = HTTPVictim(
        mapping(input__levels=17, request={"body": {"image": "$input"}}, response__scores="predictions[0].scores")
    )
    victim.query(X[:1])
    sent = json.loads(service.seen[0][2])["image"]
    assert sent == (X[0] * 16).round().long().tolist()


def test_labels_alone_a_top_three_one_score_and_a_label_beside_scores(service: Service) -> None:
    labels = HTTPVictim(mapping(response__scores=None, response__labels="predictions[*].label"))
    assert labels.access is sp.Access.LABELS
    truth = service.model.query(X[:6])
    assert torch.equal(labels.query(X[:6]).labels, truth.labels)
    numbers = HTTPVictim(mapping(response={"labels": "predictions[*].number", "classes": 10}))
    assert torch.equal(numbers.query(X[:6]).labels, truth.labels)

    top = HTTPVictim(
        mapping(response__scores="predictions[*].top[*].score", response__labels="predictions[*].top[*].label")
    )
    answer = top.query(X[:6])
    assert answer.scores is not None
    assert truth.scores is not None
    assert torch.equal(answer.labels, truth.labels)
    real, told = truth.scores.double().softmax(1), answer.scores.double().exp()
    best = real.topk(3, 1)
    torch.testing.assert_close(told.gather(1, best.indices), best.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(told.sum(1), torch.ones(6).double(), atol=1e-5, rtol=0)  # the rest shares what is left
    for kind, score in (("probabilities", 0.05), ("logits", -2.0)):  # a best that is less than an equal share
        service.always = lambda handler, told, s=score: handler.reply({"predictions": [{"label": "7", "score": s}]})
        paths = {"scores": "predictions[*].score", "labels": "predictions[*].label"}
        first = HTTPVictim(mapping(response={**paths, "classes": [*"0123456789"], "kind": kind})).query(X[:1])
        assert first.scores is not None
        assert first.labels.tolist() == [7]
        assert bool((first.scores <= first.scores[0, 7]).all())
    both = HTTPVictim(mapping(response__labels="predictions[*].label"))
    service.always = lambda handler, told: handler.reply(
        {"predictions": [{"label": "7", "scores": row["scores"]} for row in told["predictions"]]}
    )
    assert both.query(X[:6]).labels.tolist() == [7] * 6
    service.always = lambda handler, told: handler.reply(
        {"predictions": [{"scores": 0.25} for _ in told["predictions"]]}
    )
    pair = HTTPVictim(mapping(response={"scores": "predictions[*].scores"})).query(X[:2]).scores
    assert pair is not None
    torch.testing.assert_close(pair.exp(), torch.tensor([[0.75, 0.25]] * 2))
    service.always = lambda handler, told: handler.reply(
        {"predictions": [{"scores": -3.0} for _ in told["predictions"]]}
    )
    logit = HTTPVictim(mapping(response={"scores": "predictions[*].scores", "kind": "logits"})).query(X[:2]).scores
    assert logit is not None
    torch.testing.assert_close(logit, torch.tensor([[1.5, -1.5]] * 2))


def test_texts(service: Service) -> None:
    service.always = lambda handler, told: handler.reply({"spam": 0.9})
    service.answer = lambda asked: {"predictions": []}  # type: ignore[method-assign]
    try:
        victim = HTTPVictim(
            {
                "service": {"url": f"http://{service.host}/"},
                "input": {"encoding": "text"},
                "request": {"body": {"prompt": 'Is this spam? "$input"', "n": 1}},
                "response": {"scores": "spam", "classes": ["ham", "spam"]},
            }
        )
        texts, _ = victim.admit(["buy $inputs now \ud800", "${DIGITS_TOKEN}"], ["spam", "spam"])
        assert victim.query(texts).labels.tolist() == [1, 1]
    finally:
        del service.answer
    sent = [json.loads(body)["prompt"] for _, _, body, _ in service.seen]
    assert sent == ['Is this spam? "buy $inputs now \ud800"', 'Is this spam? "${DIGITS_TOKEN}"']  # data stays data
    with pytest.raises(InputError, match=r"a str came. For one text: \[text\]"):
        victim.admit("buy", ["spam"])


def test_an_answer_in_chunks_keeps_the_connection(service: Service) -> None:
    def in_chunks(handler: Handler, told: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        data = json.dumps(told).encode()
        for part in (data[:7], data[7:], b""):
            handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    service.always = in_chunks
    victim = HTTPVictim(mapping(request__batch=1))
    assert torch.equal(victim.query(X[:3]).labels, service.model.query(X[:3]).labels)
    assert victim._wire._idle.qsize() == 1
    assert service.requests == 3


def test_over_tls_with_the_certificate_checked(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = (
        f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate} -days 2 "
    )
    made += "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([openssl, *made.split()], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as server:
        told = mapping(service__url=f"https://{server.host}/predict", request__batch=2)
        with pytest.raises(VictimError, match="its certificate is not valid"):
            HTTPVictim(told).query(X[:1])
        assert server.requests == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        victim = HTTPVictim(told)
        assert torch.equal(victim.query(X[:6]).labels, server.model.query(X[:6]).labels)
        assert (server.requests, victim._wire._idle.qsize()) == (3, 1)
        victim.close()


def test_connections_are_kept_and_a_closed_one_is_replaced(service: Service) -> None:
    victim = HTTPVictim(mapping(request__batch=1))
    victim.query(X[:3])
    assert victim._wire._idle.qsize() == 1
    kept = victim._wire._idle.queue[0]
    victim.query(X[3:5])
    assert victim._wire._idle.queue[0] is kept
    service.tricks = [lambda handler, told: handler.reply(told, Connection="close")]
    victim.query(X[5:6])
    assert victim._wire._idle.qsize() == 0
    victim.query(X[6:7])
    kept = victim._wire._idle.queue[0]
    kept._raw.shutdown(2)  # as an idle connection ends at the other side
    victim.query(X[7:8])
    assert service.requests == victim.spent.requests == 8


# -- attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "space", "n", "least"),
    [
        ("square", {"queries": 40}, sp.Linf(0.3), 4, 3),
        ("simba", {"queries": 100}, sp.L2(3.0), 2, 1),
        ("hopskipjump", {"queries": 150}, sp.L2(None), 2, 2),
    ],
)
def test_attacks_count_what_the_service_counts(
    service: Service, tmp_path: Path, name: str, params: dict[str, int], space: Any, n: int, least: int
) -> None:
    known = {p for p in params if p in getattr(make_attack(name), "__dataclass_fields__", {})}
    attack = make_attack(name, **{p: params[p] for p in known})
    assert isinstance(attack, Attack)
    path = tmp_path / "answers.sqlite"
    threat = sp.ThreatModel(space, queries=params["queries"])
    victim = HTTPVictim(mapping(), log=path)
    result = attack(victim, X[:n], Y[:n], threat, seed=1)
    assert int(result.succeeded.sum()) >= least
    assert torch.equal(service.model.query(result.adversarial).labels, result.final.labels)
    # the clean pass and each question once; the re-check is answered from the log
    assert service.inputs == victim.spent.queries == len(victim.log)
    assert service.inputs <= n + int(result.queries.sum())
    assert service.inputs >= int(result.queries.sum())
    assert int(result.queries.max()) <= params["queries"]
    victim.close()

    asked = service.requests
    again = attack(HTTPVictim(mapping(), log=path), X[:n], Y[:n], threat, seed=1)
    assert service.requests == asked
    assert torch.equal(again.adversarial, result.adversarial)
    assert torch.equal(again.queries, result.queries)


def test_an_attack_with_gradients_is_refused_with_the_alternative(service: Service) -> None:
    with pytest.raises(CapabilityError, match=r"offers scores. `sparring attacks --access scores`"):
        sp.PGD()(HTTPVictim(mapping()), X[:1], Y[:1], sp.Linf(0.1))
    assert service.requests == 0


# -- failures ----------------------------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Any:
    return lambda handler, told: handler.reply({"error": f"no, {SECRET}"}, code, **headers)


def stall(handler: Handler, told: Any) -> None:
    time.sleep(2)
    handler.close_connection = True


def drip(handler: Handler, told: Any) -> None:
    """Bytes that never stop and never come to an end."""
    handler.send_response(200)
    for _ in range(100):
        try:
            handler.wfile.write(b"X-Drip: 1\r\n")
            handler.wfile.flush()
        except OSError:
            break
        time.sleep(0.02)
    handler.close_connection = True


def cut(handler: Handler, told: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"predictions"')
    handler.close_connection = True


def babble(handler: Handler, told: Any) -> None:
    handler.wfile.write(b"HELLO THERE\r\n\r\n")
    handler.close_connection = True


def hang_up(handler: Handler, told: Any) -> None:
    handler.close_connection = True


def test_two_failures_and_then_an_answer(service: Service) -> None:
    service.tricks = [status(503), status(500)]
    victim = HTTPVictim(mapping(budget={"price": 0.5, "currency": "EUR"}))
    assert torch.equal(victim.query(X[:3]).labels, service.model.query(X[:3]).labels)
    assert service.requests == 3
    assert (victim.spent.requests, victim.spent.queries, victim.spent.cost) == (1, 3, 1.5)  # refusals are free
    first, second, third = (at for *_, at in service.seen)
    assert second - first >= 0.005
    assert third - second >= 0.01


@pytest.mark.parametrize("trick", [stall, drip, cut, babble, hang_up])
def test_requests_of_which_nothing_is_heard_are_sent_again_and_taken_for_paid(service: Service, trick: Any) -> None:
    service.tricks = [trick]
    victim = HTTPVictim(mapping(service__timeout=1.0, budget={"price": 1.0}))
    assert torch.equal(victim.query(X[:2]).labels, service.model.query(X[:2]).labels)
    assert service.requests == victim.spent.requests == 2
    assert victim.spent.cost == 4.0


def test_no_answer_at_all_is_an_error_in_time(service: Service) -> None:
    service.always = stall
    victim = HTTPVictim(mapping(service__timeout=0.1, service__retries=1))
    start = time.monotonic()
    with pytest.raises(VictimError, match=r"gives no answer after 2 attempts: not answered within 0.1 s"):
        victim.query(X[:1])
    assert time.monotonic() - start < 2
    service.always = status(503)
    with pytest.raises(VictimError, match="status 503 and says"):
        victim.query(X[:1])


def test_a_client_error_is_not_sent_again(service: Service) -> None:
    for code, told in ((400, "check the mapping"), (401, "check the key"), (404, "check the mapping's url")):
        service.reset()
        service.always = status(code)
        with pytest.raises(VictimError, match=rf"answers {code} and says .*{told}") as caught:
            HTTPVictim(mapping()).query(X[:1])
        assert service.requests == 1
        assert SECRET not in str(caught.value)
        assert "***" in str(caught.value)


def test_redirects_are_refused(service: Service) -> None:
    service.always = status(307, Location=f"http://{service.host}/{SECRET}")
    with pytest.raises(VictimError, match="Redirects are not followed") as caught:
        HTTPVictim(mapping()).query(X[:1])
    assert service.requests == 1
    assert SECRET not in str(caught.value)


def test_retry_after_is_honoured_in_seconds_and_as_a_date_up_to_a_limit(service: Service) -> None:
    service.tricks = [status(429, Retry_After="1")]
    HTTPVictim(mapping()).query(X[:1])
    first, second = (at for *_, at in service.seen)
    assert second - first >= 1.0
    service.reset()
    service.always = status(429, Retry_After=email.utils.formatdate(time.time() + 3600, usegmt=True))
    with pytest.raises(VictimError, match=r"left alone for 3[56]\d\d s .*longest_wait is 60"):
        HTTPVictim(mapping()).query(X[:1])
    assert service.requests == 1


def test_the_rate_is_kept(service: Service) -> None:
    victim = HTTPVictim(mapping(service__rate=20, service__concurrency=4, request__batch=1))
    victim.query(X[:8])
    times = sorted(at for *_, at in service.seen)
    assert times[-1] - times[0] >= 7 / 20 * 0.6


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with serving() as server:
        host = server.host
    victim = HTTPVictim(
        {
            **mapping(),
            "service": {"url": f"http://{host}/predict", "retries": 1, "backoff": 0.0},
            "budget": {"price": 1.0, "max_cost": 1.0},
        }
    )
    for _ in range(3):  # nothing was sent, so nothing is spent
        with pytest.raises(VictimError, match="no connection"):
            victim.query(X[:1])
    assert victim.spent.cost == 0


# -- lies --------------------------------------------------------------------------------------------------------------


def saying(told: Any) -> Any:
    return lambda handler, honest: handler.reply(told)


LIES: list[tuple[str, Any, str]] = [
    ("a missing field", {"result": []}, r"an object with result; the field 'predictions' is needed"),
    ("a missing score", {"predictions": [{"score": 1}, {}]}, r"\[0\] is an object with score; the field 'scores'"),
    ("too few rows", {"predictions": [{"scores": [0.1] * 10}]}, "a list of 1 for 2 inputs"),
    ("too many rows", {"predictions": [{"scores": [0.1] * 10}] * 3}, "a list of 3 for 2 inputs"),
    ("no list", {"predictions": {"scores": [0.1] * 10}}, "an object with scores; a list is needed"),
    ("too few scores", {"predictions": [{"scores": [0.1] * 9}] * 2}, "a row holds 9 scores; 10 are needed"),
    ("NaN", b'{"predictions": [{"scores": [NaN]}]}', "a score is NaN"),
    ("infinity", b'{"predictions": [{"scores": [1e999,0,0,0,0,0,0,0,0,0]},{}]}', "'scores' is needed|too large"),
    ("a number beyond floats", {"predictions": [{"scores": [10**400] * 10}] * 2}, "too large to be a number"),
    ("texts", {"predictions": [{"scores": ["0.1"] * 10}] * 2}, "a score is the text '0.1'; a number is needed"),
    ("truths", {"predictions": [{"scores": [True] * 10}] * 2}, "a score is true"),
    ("nothing", {"predictions": [{"scores": None}] * 2}, "a score is null"),
    ("logits", {"predictions": [{"scores": [3.0] * 10}] * 2}, 'no probability; for logits: kind = "logits"'),
    ("no JSON", b"0.1, 0.9", "it is no JSON"),
    ("an empty answer", b"", "it is nothing at all"),
    ("a web page", b"<!DOCTYPE html><html>Down for maintenance", "it is a web page"),
    ("bytes", b"\xff\xfe\x00", "it is no JSON"),
    ("a deep nest", b"[" * 100_000, "it is no JSON"),
    ("an error as success", {"error": "model is loading"}, "an object with error"),
]


@pytest.mark.parametrize(("name", "told", "match"), LIES, ids=[lie[0] for lie in LIES])
def test_lies_are_errors_once_and_leave_nothing_in_the_log(service: Service, name: str, told: Any, match: str) -> None:
    service.always = saying(told)
    victim = HTTPVictim(mapping(budget={"price": 1.0}))
    with pytest.raises(VictimError, match=match):
        victim.query(X[:2])
    assert service.requests == 1  # another try would be another lie, and perhaps another bill
    assert len(victim.log) == 0
    assert victim.spent.cost == 2.0  # a success was said, so it is taken for billed
    service.always = None
    assert torch.equal(victim.query(X[:2]).labels, service.model.query(X[:2]).labels)


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ([{"label": "cat", "score": 1.0}], "a label is the text 'cat'; one of 0, 1, 2"),
        ([{"label": 10, "score": 1.0}], "a label is the number 10"),
        ([{"label": True, "score": 1.0}], "a label is true"),
        ([{"label": "1", "score": 0.5}, {"label": "1", "score": 0.4}], "a class is listed twice"),
        ([], "as many of both are needed"),
    ],
)
def test_lies_about_labels(service: Service, told: Any, match: str) -> None:
    service.always = saying({"predictions": [{"top": told}]})
    victim = HTTPVictim(
        mapping(response__scores="predictions[*].top[*].score", response__labels="predictions[*].top[*].label")
    )
    with pytest.raises(VictimError, match=match):
        victim.query(X[:1])


def test_a_huge_answer_is_not_read_to_its_end(service: Service) -> None:
    service.always = lambda handler, told: handler.reply(b" " * 5_000_000)
    victim = HTTPVictim(mapping(service__largest_answer=10_000))
    with pytest.raises(VictimError, match="more than 10,000 bytes; raise largest_answer"):
        victim.query(X[:1])
    assert service.requests == 1


def test_a_number_of_classes_that_changes(service: Service) -> None:
    victim = HTTPVictim(mapping(response={"scores": "predictions[*].scores"}))
    victim.query(X[:1])
    service.always = saying({"predictions": [{"scores": [0.5, 0.25, 0.25]}]})
    with pytest.raises(VictimError, match="a row holds 3 scores; 10 are needed"):
        victim.query(X[1:2])
    fresh = HTTPVictim(mapping(response={"scores": "predictions[*].scores"}))
    service.always = saying({"predictions": [{"scores": [0.5, 0.25, 0.25]}, {"scores": [0.5, 0.5]}]})
    with pytest.raises(VictimError, match="rows hold 2 and 3 scores"):
        fresh.query(X[:2])


# -- the log and the costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "told", "most", "concurrency"),
    [
        ({"max_queries": 15}, "max_queries = 15: so far 15 inputs in 15 requests", 15, 1),
        ({"max_queries": 15}, "max_queries = 15: so far 15 inputs in 15 requests", 15, 3),
        ({"price": 0.1, "max_cost": 1.7}, "max_cost = 1.7 USD: so far 17 inputs in 17 requests for 1.7 USD", 17, 1),
        ({"price": 0.1, "price_per_request": 0.4, "max_cost": 6.2, "currency": "EUR"}, "for 6 EUR", 12, 3),
    ],
)
def test_a_cap_stops_the_run_and_a_resumed_one_pays_nothing_twice(
    service: Service, tmp_path: Path, budget: dict[str, Any], told: str, most: int, concurrency: int
) -> None:
    path, attack, space = tmp_path / "answers.sqlite", make_attack("square"), sp.Linf(0.2)
    few: dict[str, Any] = {"request__batch": 1, "service__concurrency": concurrency}
    threat = sp.ThreatModel(space, queries=12)
    capped = HTTPVictim(mapping(**few, budget=budget), log=path)
    for _ in range(2):  # the cap is the log's: a second run has nothing left to spend
        with pytest.raises(BudgetError, match="raise the cap and run the same again") as caught:
            attack(capped, X[:4], Y[:4], threat)
    assert told in str(caught.value)
    assert caught.value.queries == capped.spent.queries == service.inputs == most
    capped.close()
    free = HTTPVictim(mapping(**few, budget={"price": 0.1}), log=path)
    result = attack(free, X[:4], Y[:4], threat)
    whole = HTTPVictim(mapping(**few))
    service.reset()
    truth = attack(whole, X[:4], Y[:4], threat)
    assert torch.equal(result.adversarial, truth.adversarial)
    assert (
        free.spent.queries == whole.spent.queries == service.inputs
    )  # what the cap cut in two cost no more than in one


def test_a_resumed_run_needs_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, attack = tmp_path / "answers.sqlite", make_attack("square")
    threat = sp.ThreatModel(sp.Linf(0.2), queries=10)
    monkeypatch.setenv("DIGITS_TOKEN", SECRET)
    with serving() as server:
        monkeypatch.setenv("DIGITS_HOST", server.host)
        first = attack(HTTPVictim(mapping(), log=path), X[:4], Y[:4], threat)
        assert server.inputs > 4
    monkeypatch.setenv("DIGITS_TOKEN", "another-key-of-the-same-account")
    again = attack(HTTPVictim(mapping(service__retries=0), log=path), X[:4], Y[:4], threat, batch_size=1)
    assert torch.equal(again.adversarial, first.adversarial)


def test_a_crash_in_the_middle_of_a_batch_loses_nothing(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    victim = HTTPVictim(mapping(request__batch=5, service__retries=0), log=path)
    service.tricks = [Handler.reply, Handler.reply, status(503)]
    with pytest.raises(VictimError, match="What was answered before is kept"):
        victim.query(X[:20])
    assert len(HTTPVictim(mapping(), log=path).log) == 10
    del victim
    other = HTTPVictim(mapping(), log=path)
    other.query(X[:20])
    assert [len(json.loads(body)["instances"]) for _, _, body, _ in service.seen] == [5, 5, 5, 10]


def test_an_open_request_of_a_run_that_was_killed_counts_as_paid(service: Service, tmp_path: Path) -> None:
    victim = HTTPVictim(mapping(budget={"price": 1.0, "max_cost": 5.0}), log=tmp_path / "a.sqlite")
    victim.log.open(3, victim.mapping.budget)  # written down, and then the process died
    with pytest.raises(BudgetError):
        HTTPVictim(mapping(budget={"price": 1.0, "max_cost": 5.0}), log=tmp_path / "a.sqlite").query(X[:3])
    assert service.requests == 0


def test_one_input_twice_in_a_batch_is_asked_once(service: Service) -> None:
    victim = HTTPVictim(mapping())
    x = torch.cat([X[:2], X[:2], -0.0 * X[:1], 0.0 * X[:1]])
    assert torch.equal(victim.query(x).labels, service.model.query(x).labels)
    assert service.inputs == 3


def test_threads_and_runs_that_share_a_log(service: Service, tmp_path: Path) -> None:
    path, told = tmp_path / "a.sqlite", mapping(request__batch=1, service__concurrency=2)
    victims = [HTTPVictim(told, log=path) for _ in range(2)]
    threads = [threading.Thread(target=v.query, args=(X[20 * i : 20 * i + 20],)) for i, v in enumerate(victims)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.inputs == len(victims[0].log) == victims[1].spent.queries == 40


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"service__url": "http://${DIGITS_HOST}/v2"}, "address"),
        ({"request__item": {"picture": "$input"}}, "item"),
        ({"response__classes": [*"1234567890"]}, "response"),
        ({"input__encoding": "row"}, "input"),
        ({"service__headers": {"X-Model": "b"}}, "headers"),
        ({"service__headers": {"Authorization": "${DIGITS_TOKEN}"}}, "a header or the address's query"),
    ],
)
def test_a_log_of_another_service_or_mapping_is_refused(
    service: Service, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = tmp_path / "a.sqlite"
    before = HTTPVictim(mapping(), log=path)
    with pytest.raises(
        LoadError, match=rf"belongs to another service or mapping \({'changed: ' * (' ' not in named)}.*{named}"
    ):
        HTTPVictim(mapping(**changes), log=path)
    assert HTTPVictim(mapping(**changes)).fingerprint() != before.fingerprint()


def test_patience_budget_and_batches_keep_the_log(service: Service, tmp_path: Path) -> None:
    before = HTTPVictim(mapping(), log=tmp_path / "a.sqlite")
    changed = mapping(service__timeout=9, service__rate=3, request__batch=2, budget={"max_queries": 1}, name="other")
    assert HTTPVictim(changed, log=tmp_path / "a.sqlite").fingerprint() == before.fingerprint()


def test_a_damaged_log_is_an_error_and_a_torn_last_write_is_none(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    victim = HTTPVictim(mapping(), log=path)
    victim.query(X[:8])
    wal = tmp_path / "a.sqlite-wal"
    torn = tmp_path / "b.sqlite"  # as a machine that lost its power leaves it: the last write is half there
    torn.write_bytes(path.read_bytes())
    before = wal.read_bytes()
    victim.query(X[8:9])
    now = wal.read_bytes()
    assert len(now) > len(before)
    (tmp_path / "b.sqlite-wal").write_bytes(now[: (len(before) + len(now)) // 2])
    victim.close()
    asked = service.inputs
    again = HTTPVictim(mapping(), log=torn)
    assert torch.equal(again.query(X[:9]).labels, service.model.query(X[:9]).labels)
    assert service.inputs == asked + 1
    again.close()

    whole = path.read_bytes()
    for name, damaged in (
        ("c", whole[: len(whole) // 2]),
        ("d", b"\x00" * 300 + whole[300:]),
        ("e", whole[:4096] + bytes(len(whole) - 4096)),
        ("f", b"not a database, but a file of somebody's"),
    ):
        file = tmp_path / f"{name}.sqlite"
        file.write_bytes(damaged)
        with pytest.raises(LoadError, match=r"cannot be used: (.|\n)*damaged, what is left of it can be saved"):
            HTTPVictim(mapping(), log=file)
        assert file.read_bytes() == damaged
    other = tmp_path / "g.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("create table mine (x)")
    db.close()
    with pytest.raises(LoadError, match="a database, but no answer log"):
        HTTPVictim(mapping(), log=other)
    with pytest.raises(LoadError, match="cannot be opened"):
        HTTPVictim(mapping(), log=tmp_path / "missing" / "a.sqlite")


def test_secrets_are_sent_and_written_nowhere(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    service.tricks = [status(503)]
    victim = HTTPVictim(
        mapping(service__headers={"Authorization": "Bearer ${DIGITS_TOKEN}", "X-Api-Key": "plain-key-1"}), log=path
    )
    result = make_attack("square")(victim, X[:2], Y[:2], sp.ThreatModel(sp.Linf(0.2), queries=5))
    sent_path, headers, _, _ = service.seen[0]
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert sent_path == f"/v1/{SECRET}/predict?key={SECRET}"
    service.always = lambda handler, told: handler.reply({"you": f"sent {SECRET} and plain-key-1", SECRET: 1})
    with pytest.raises(VictimError) as lied:
        victim.query(X[10:11])
    service.always = saying({"predictions": [{"scores": [f"a key that is cut in the middle: {SECRET}"] * 10}]})
    with pytest.raises(VictimError, match="a text of") as cut_short:
        victim.query(X[10:11])
    assert SECRET[:8] not in str(cut_short.value)
    service.always = status(503)
    with pytest.raises(VictimError) as failed:
        victim.query(X[10:11])
    told = [str(lied.value), str(failed.value), repr(victim.mapping.service.url), repr(result), repr(vars(victim.log))]
    for text in (*told, everything_in(path).decode("latin-1")):
        assert SECRET not in text
    assert "plain-key-1" not in str(lied.value)
    assert b"plain-key-1" not in everything_in(path)
    assert lied.value.__suppress_context__


# -- mappings ----------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"service": {}}, InputError, "has no url"),
    ({"service__url": "ftp://host/x"}, InputError, "begins with 'ftp'"),
    ({"service__url": "file:///etc/passwd"}, InputError, "begins with 'file'"),
    ({"service__url": "predict"}, InputError, "https://host/path is needed"),
    ({"service__url": "http://me:pw@host/"}, InputError, "a login goes into a header"),
    ({"service__url": "http://host:99999/"}, InputError, "no valid address"),
    ({"service__url": "http:///x"}, InputError, "names no host"),
    ({"service__headers": {"X-Key": "${NOT_SET_ANYWHERE}"}}, InputError, "NOT_SET_ANYWHERE, which is not set: export"),
    ({"service__headers": {"X-Key": "a\r\nX-Evil: 1"}}, InputError, "characters that cannot be sent"),
    ({"service__headers": {"X Key": "a"}}, InputError, "no name of a header"),
    ({"service__headers": {"Host": "a"}}, InputError, "no name of a header that can be set"),
    ({"service__headers": ["a"]}, InputError, "must map names to texts"),
    ({"service__method": "GET"}, InputError, "one of POST, PUT is needed"),
    ({"service__timeout": 0}, InputError, r"\[service\] timeout is 0; a number > 0"),
    ({"service__retries": -1}, InputError, "a whole number >= 0"),
    ({"service__rate": "fast"}, InputError, "rate is 'fast'"),
    ({"service__retrys": 1}, UnknownNameError, r"key of \[service\] is called 'retrys'; close matches: retries"),
    ({"input": {}}, InputError, "has no encoding"),
    ({"input__encoding": "jpeg"}, InputError, "one of png, list, row, text"),
    ({"input__shape": [0, 8]}, InputError, r"the shape of one input is needed"),
    ({"input__bounds": [1]}, InputError, "a pair is needed"),
    ({"input__bounds": [1, 0]}, InputError, "lo < hi"),
    ({"input": {"encoding": "png", "shape": [4, 8, 8]}}, InputError, r"a PNG needs \(1, h, w\)"),
    ({"input": {"encoding": "list", "levels": 256}}, InputError, "levels needs bounds"),
    ({"input": {"encoding": "text", "bounds": [0, 1]}}, InputError, "neither shape nor bounds"),
    ({"input__layout": "hwc", "input__shape": [64]}, InputError, "a shape of three"),
    ({"request": {"body": {"x": 1}}}, InputError, "neither"),
    ({"request": {"body": {"x": "$input", "y": "$inputs"}}}, InputError, "both"),
    ({"request__item": {"x": 1}}, InputError, "item holds no"),
    ({"request": {"body": "$input", "batch": 4}}, InputError, "item and batch go with"),
    ({"response": {}}, InputError, "neither scores nor labels"),
    ({"response": {"labels": "label"}}, InputError, "labels needs classes"),
    ({"response__classes": ["a", "a"]}, InputError, "names that differ"),
    ({"response__classes": 1}, InputError, "two at least"),
    ({"response__scores": "a[b"}, InputError, "unclear from"),
    ({"response__kind": "odds"}, InputError, "one of probabilities, logits"),
    ({"budget__max_cost": 3}, InputError, "max_cost needs a price"),
    ({"budget__max_queries": 2.5}, InputError, "a whole number"),
    ({"extra": {}}, UnknownNameError, "key of the mapping"),
]


@pytest.mark.parametrize(("changes", "error", "match"), BAD, ids=[str(bad[0])[:40] for bad in BAD])
def test_bad_mappings(service: Service, changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        HTTPVictim(mapping(**changes))
    assert service.requests == 0


def test_inputs_that_do_not_fit(service: Service) -> None:
    victim = HTTPVictim(mapping())
    with pytest.raises(InputError, match=r"takes \(n, 1, 8, 8\)"):
        victim.admit(X[:1].repeat(1, 1, 2, 2), Y[:1])
    with pytest.raises(InputError, match="divide by 255"):
        victim.admit(X[:1] * 255, Y[:1])
    with pytest.raises(InputError, match="a list came"):
        victim.admit(["text"], [0])
    with pytest.raises(InputError, match="a PNG needs"):
        HTTPVictim(mapping(input={"encoding": "png"})).admit(X[:1].flatten(1), Y[:1])


def test_a_file_without_a_log_keeps_its_answers_beside_it(service: Service, tmp_path: Path) -> None:
    for line, log in (
        ("", tmp_path / "api.answers.sqlite"),
        ("log = false", None),
        ('log = "b.db"', tmp_path / "b.db"),
    ):
        text = on_the_page().replace('log = "digits-api.sqlite"', line).replace("https://", "http://")
        (tmp_path / "api.toml").write_text(text, encoding="utf-8")
        assert HTTPVictim(tmp_path / "api.toml").log.path == log
        assert HTTPVictim(tmp_path / "api.toml", log=tmp_path / "mine").log.path == tmp_path / "mine"
    assert (tmp_path / "api.answers.sqlite").exists()
    with pytest.raises(InputError, match="the path of a file is needed, or false"):
        HTTPVictim(mapping(log=3))


def test_files_that_are_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read: No such file"):
        sp.load(tmp_path / "none.toml")
    for text, told in (("a = ", "is no TOML"), ("[audit]\n", "has the tables audit; a victim over HTTP needs")):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(LoadError, match=told):
            sp.load(tmp_path / "a.toml")
    with pytest.raises(LoadError, match=r"loaded by a file that says how to ask it: sparring.load\('service.toml'\)"):
        sp.load("https://example.org/predict?key=secret")


def test_paths_and_templates() -> None:
    assert parse_path("$.a.b_2[3][*].c-d", "it") == ("a", "b_2", 3, None, "c-d")
    assert parse_path('["a.b"].c', "it") == ("a.b", "c")
    assert parse_path("$", "it") == ()
    assert follow({"a": [{"b": 1}, {"b": 2}]}, parse_path("a[*].b", "it")) == [1, 2]
    with pytest.raises(VictimError, match=r"\$.a\[1\] is null; the field 'b'"):
        follow({"a": [{"b": 1}, None]}, parse_path("a[*].b", "it"))
    assert fill({"x": ["$inputs", "$input", 3]}, "$inputs", [1]) == {"x": [[1], "$input", 3]}
    with pytest.raises(InputError, match="only texts and PNG can stand inside a text"):
        fill("a $input", "$input", [1])


# -- the page, and the command line ------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs" / "remote-victims.md"


def on_the_page() -> str:
    return PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]


def test_the_page_s_example_runs_as_it_stands(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = on_the_page()
    assert "https://${DIGITS_HOST}/v1/predict" in text
    path = tmp_path / "digits-api.toml"
    path.write_text(text.replace("https://", "http://"), encoding="utf-8")
    victim = sp.load(path)
    assert isinstance(victim, HTTPVictim)
    assert victim.log.path == tmp_path / "digits-api.sqlite"
    x = (X[:2] * 255).round() / 255
    result = make_attack("square")(victim, x, Y[:2], sp.ThreatModel(sp.Linf(0.2, lattice=256), queries=20))
    assert len(result) == 2
    assert service.inputs == victim.spent.queries > 2
    assert victim.spent.cost == pytest.approx(0.0015 * service.inputs)
    victim.close()

    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "three.png"
    sample_picture(3).save(picture)
    code = main(
        [
            "attack",
            "three.png",
            "--model",
            "digits-api.toml",
            "--with",
            "square",
            "--eps",
            "0.3",
            "--queries",
            "60",
            "--json",
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert (code, told["succeeded"], told["model"]) == (0, True, "digits-api")
    asked = service.requests
    assert main(["classify", "three.png", "--model", "digits-api.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == told["before"]["label"]
    assert service.requests == asked


def test_options_beside_a_mapping(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(on_the_page().replace("https://", "http://"), encoding="utf-8")
    assert sp.load(path, name="mine").name == "mine"
    with pytest.raises(InputError, match=r"takes no labels here; .* the mapping itself"):
        sp.load(path, labels=["a", "b"])
