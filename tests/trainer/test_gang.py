"""What the nodes of an attempt say to each other, and what is refused: no training here, only the lines."""

from __future__ import annotations

import json
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.trainer.nodes import free_port
from trainer.endings import Report, gone, judge
from trainer.errors import MissingKey, NotReady, UsageError
from trainer.gang import Head, Member
from trainer.nodes import Nodes, interface_of

SECRET = b'{"nonce": "0123456789abcdef"}'
ADDRESSES = ("127.0.0.1", "127.0.0.2")


def here(rank: int, port: int, patience_s: float = 30.0) -> Nodes:
    return Nodes(rank, ADDRESSES, port, patience_s)


def the_secret(epoch: int) -> bytes:
    assert epoch == 7
    return SECRET


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head(here(0, free_port()))
    head.open(7, 3, SECRET)
    yield head
    head.end(Report("finished"))


def stranger(head: Head) -> tuple[socket.socket, dict[str, Any]]:
    """Somebody on the network, and what the head says to anybody."""
    line = socket.create_connection((ADDRESSES[0], head.nodes.port), timeout=30)
    return line, json.loads(line.makefile("rb").readline())


def shown_out(line: socket.socket) -> bool:
    """Whether the head has closed the line without another word."""
    try:
        return line.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "words",
    [
        b"\x00\xff\xfe\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 60_000 + b"\n",
        b"{" * 200_000,
        b'{"say": "join", "rank": 1}\n',
        b'{"say": "join", "rank": 1, "challenge": "0", "proof": "0"}\n',
        b'{"say": "join", "rank": true, "challenge": "0", "proof": "0"}\n',
        b'{"say": "over", "kind": "failed", "exit_code": 0, "error": "", "hint": "", "certain": true}\n',
        b'{"say": "join", "rank": 1, "challenge": "%b", "proof": "\\u00e9"}\n' % (b"0" * 32),
        b'{"say": "join", "rank": 1, "challenge": "\\ud800", "proof": "%b"}\n' % (b"0" * 64),
        b'["say", "join"]\n',
        pickle.dumps({"say": "join", "rank": 1}) + b"\n",
    ],
    ids=lambda words: words[:20],
)
def test_who_speaks_nonsense_or_does_not_know_the_nonce_is_shown_out_and_harms_nothing(
    head: Head, words: bytes
) -> None:
    line, _ = stranger(head)
    with line:
        line.sendall(words)
        assert shown_out(line)

    member = Member(here(1, head.nodes.port), the_secret)
    head.gather()
    assert (member.epoch, member.attempt) == (7, 3)
    assert not head.halted
    member.end(Report("finished"))


def test_an_overheard_proof_opens_no_other_line(head: Head) -> None:
    with socket.create_server((ADDRESSES[0], 0)) as between:
        told: list[bytes] = []

        def overhear() -> None:
            victim, _ = between.accept()
            beyond = socket.create_connection((ADDRESSES[0], head.nodes.port))
            with victim, beyond:
                victim.sendall(beyond.makefile("rb").readline())
                told.append(victim.makefile("rb").readline())

        thread = threading.Thread(target=overhear)
        thread.start()
        with pytest.raises(NotReady):
            Member(here(1, between.getsockname()[1], patience_s=0.0), the_secret)
        thread.join()

    assert json.loads(told[0])["proof"]
    line, _ = stranger(head)
    with line:
        line.sendall(told[0])
        assert shown_out(line)


def test_a_node_that_reads_another_store_is_refused_and_says_so(head: Head) -> None:
    def missing(epoch: int) -> bytes:
        raise MissingKey(f"epoch {epoch}")

    for secret_of, why in (
        (lambda epoch: b"another run's claim", "closed its line"),
        (missing, "does not show"),
    ):
        with pytest.raises(NotReady, match=f"found no head at 127.0.0.1 port .* {why}"):
            Member(here(1, head.nodes.port, patience_s=0.0), secret_of)
    head.listen()
    assert not head.halted


def test_a_head_that_cannot_read_the_store_is_not_believed() -> None:
    with socket.create_server((ADDRESSES[0], 0)) as listener:

        def pretend() -> None:
            line, _ = listener.accept()
            with line, line.makefile("rb") as said:
                line.sendall(
                    b'{"say": "hello", "protocol": 1, "epoch": 7, "challenge": "%b"}\n' % (b"0" * 32)
                )
                asked = json.loads(said.readline())
                told = {
                    "say": "welcome",
                    "attempt": 3,
                    "proof": asked["proof"],
                }  # sent back to whom it came from
                line.sendall(json.dumps(told).encode() + b"\n")

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(NotReady, match="it cannot read this run's store"):
            Member(here(1, listener.getsockname()[1], patience_s=0.0), the_secret)
        thread.join()


def test_a_second_node_of_the_same_rank_is_refused(head: Head) -> None:
    member = Member(here(1, head.nodes.port), the_secret)
    with pytest.raises(NotReady, match="there is a node 1 already"):
        Member(here(1, head.nodes.port, patience_s=0.0), the_secret)
    member.end(Report("finished"))


def test_nodes_with_different_numbers_of_processes_are_refused_by_name(head: Head) -> None:
    member = Member(here(1, head.nodes.port), the_secret)
    seen: list[Report] = []

    def follow() -> None:
        member.halted = True  # this test is not about its ranks
        member._say({"say": "ready", "processes": 7})
        seen.append(member.over(Report("halted", 75)))
        member.end(seen[0])

    thread = threading.Thread(target=follow)
    thread.start()
    with pytest.raises(NotReady, match=r"node 0 \(127.0.0.1\): 8, node 1 \(127.0.0.2\): 7") as caught:
        head.gather()
        head.set_off(8)
    verdict = head.over(Report("failed", caught.value.exit_code, caught.value.message))
    head.end(verdict)
    thread.join()

    assert seen == [verdict]
    assert verdict.exit_code == 3


FAULT = Report("failed", 2, "the corpus is empty")
ECHO = Report("failed", 1, "Connection closed by peer", certain=False)
GONE = gone("node 1", "it closed its line")
HALTED = Report("halted", 75)
LEFT = Report("left", 75)
PREEMPTED = Report("preempted", 75)
FINISHED = Report("finished")


@pytest.mark.parametrize(
    ("reports", "verdict"),
    [
        ([FINISHED, FINISHED], FINISHED),
        ([PREEMPTED, PREEMPTED], PREEMPTED),
        ([FINISHED, PREEMPTED], PREEMPTED),
        ([HALTED, FAULT], FAULT),
        ([ECHO, FAULT], FAULT),
        ([ECHO, GONE], GONE),
        ([ECHO, HALTED], ECHO),
        ([GONE, FAULT], FAULT),
        ([HALTED, LEFT], LEFT),
        ([FAULT, LEFT], FAULT),
        ([HALTED, GONE], GONE),
    ],
    ids=lambda value: "+".join(r.kind for r in value) if isinstance(value, list) else None,
)
def test_one_end_is_made_of_all_reports_and_never_a_preemption_of_a_fault(
    reports: list[Report], verdict: Report
) -> None:
    assert judge(reports) == judge(reports[::-1]) == verdict


TWO = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n"}


def test_nodes_are_read_from_what_skypilot_tells() -> None:
    nodes = Nodes.from_environment(TWO | {"VLAUNCH_RENDEZVOUS_PORT": "30000"})

    assert (nodes.rank, nodes.leads, nodes.addresses) == (1, False, ("10.0.0.1", "10.0.0.2"))
    assert nodes.rendezvous == "tcp://10.0.0.1:30001"
    assert nodes.name(1) == "node 1 (10.0.0.2)"
    assert Nodes.from_environment({}).count == 1
    assert Nodes.from_environment({"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_IPS": "10.0.0.1"}).leads


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"SKYPILOT_NUM_NODES": "two"}, "SKYPILOT_NUM_NODES=two"),
        ({"SKYPILOT_NUM_NODES": "0"}, "SKYPILOT_NUM_NODES=0"),
        ({"SKYPILOT_NUM_NODES": "3"}, "SKYPILOT_NODE_IPS has 2 addresses"),
        ({"SKYPILOT_NODE_IPS": ""}, "SKYPILOT_NODE_IPS has 0 addresses"),
        ({"SKYPILOT_NODE_RANK": "2"}, "SKYPILOT_NODE_RANK=2"),
        ({"SKYPILOT_NODE_RANK": "-1"}, "SKYPILOT_NODE_RANK=-1"),
        ({"SKYPILOT_NODE_RANK": ""}, "SKYPILOT_NODE_RANK"),
        ({"VLAUNCH_RENDEZVOUS_PORT": "65535"}, "VLAUNCH_RENDEZVOUS_PORT=65535"),
        ({"VLAUNCH_RENDEZVOUS_TIMEOUT_S": "soon"}, "VLAUNCH_RENDEZVOUS_TIMEOUT_S=soon"),
        ({"VLAUNCH_RENDEZVOUS_TIMEOUT_S": "nan"}, "VLAUNCH_RENDEZVOUS_TIMEOUT_S=nan"),
    ],
)
def test_a_contradiction_among_the_variables_is_named(wrong: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Nodes.from_environment(TWO | wrong)


def test_a_port_that_is_taken_is_refused_before_anything_is_claimed() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        with pytest.raises(NotReady, match=f"port {taken.getsockname()[1]} of 127.0.0.1 cannot be had"):
            Head(here(0, taken.getsockname()[1]))


def test_an_address_leads_to_its_interface() -> None:
    assert interface_of("127.0.0.2") == "lo"
    assert interface_of("203.0.113.77") is None
    assert interface_of("no address") is None


def test_the_head_listens_on_its_own_address_alone(head: Head) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", head.nodes.port))
