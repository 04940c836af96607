"""An ICE agent of libnice that uses relayed candidates alone.

    agent.py ADDRESS PORT USER PASSWORD {udp,tcp} {call,answer} COUNT

It writes its description (SDP) as one line of JSON, reads that of the other agent from a line, and connects.
The calling agent then sends COUNT datagrams, which the answering one returns, and both write what came of it.
The answering agent goes on until its input ends.
"""

import ctypes
import json
import sys
import threading
import time

LIMIT = 20  # seconds, for each thing that it waits for
STREAM, COMPONENT = 1, 1
READY = 4  # NICE_COMPONENT_STATE_READY
KINDS = ["host", "srflx", "prflx", "relay"]  # NiceCandidateType

glib = ctypes.CDLL("libglib-2.0.so.0")
gobject = ctypes.CDLL("libgobject-2.0.so.0")
nice = ctypes.CDLL("libnice.so.10")

pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint
Received = ctypes.CFUNCTYPE(None, pointer, number, number, number, pointer, pointer)
Gathered = ctypes.CFUNCTYPE(None, pointer, number, pointer)


def declare(library, name, result, *arguments):
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


main_context_new = declare(glib, "g_main_context_new", pointer)
main_loop_new = declare(glib, "g_main_loop_new", pointer, pointer, ctypes.c_int)
main_loop_run = declare(glib, "g_main_loop_run", None, pointer)
connect_signal = declare(
    gobject, "g_signal_connect_data",
    ctypes.c_ulong, pointer, text, Gathered, pointer, pointer, ctypes.c_int,
)
agent_new = declare(nice, "nice_agent_new", pointer, pointer, ctypes.c_int)
add_stream = declare(nice, "nice_agent_add_stream", number, pointer, number)
set_stream_name = declare(nice, "nice_agent_set_stream_name", ctypes.c_int, pointer, number, text)
set_relay_info = declare(
    nice, "nice_agent_set_relay_info",
    ctypes.c_int, pointer, number, number, text, number, text, text, ctypes.c_int,
)
attach_recv = declare(
    nice, "nice_agent_attach_recv",
    ctypes.c_int, pointer, number, number, pointer, Received, pointer,
)
gather_candidates = declare(nice, "nice_agent_gather_candidates", ctypes.c_int, pointer, number)
generate_local_sdp = declare(nice, "nice_agent_generate_local_sdp", text, pointer)
parse_remote_sdp = declare(nice, "nice_agent_parse_remote_sdp", ctypes.c_int, pointer, text)
component_state = declare(nice, "nice_agent_get_component_state", ctypes.c_int, pointer, number, number)
selected_pair = declare(
    nice, "nice_agent_get_selected_pair",
    ctypes.c_int, pointer, number, number,
    ctypes.POINTER(ctypes.POINTER(ctypes.c_int)), ctypes.POINTER(ctypes.POINTER(ctypes.c_int)),
)
send = declare(nice, "nice_agent_send", ctypes.c_int, pointer, number, number, number, text)


def set_boolean(agent, name, value):
    # The function takes any number of arguments, which are not declared.
    gobject.g_object_set(pointer(agent), text(name), ctypes.c_int(value), pointer(None))


def wait(what, test):
    end = time.monotonic() + LIMIT
    while not test():
        if time.monotonic() > end:
            sys.exit(f"it did not come true within {LIMIT} s that {what}")
        time.sleep(0.005)


def say(value):
    print(json.dumps(value), flush=True)


def main():
    address, port, user, password, transport, role, count = sys.argv[1:]
    context = main_context_new()
    agent = agent_new(context, 0)
    for name, value in [
        (b"force-relay", True), (b"ice-tcp", False), (b"upnp", False),
        (b"controlling-mode", role == "call"),
    ]:
        set_boolean(agent, name, value)
    if add_stream(agent, 1) != STREAM or not set_stream_name(agent, STREAM, b"application"):
        sys.exit("no stream")
    relay = (address.encode(), int(port), user.encode(), password.encode())
    if not set_relay_info(agent, STREAM, COMPONENT, *relay, ["udp", "tcp"].index(transport)):
        sys.exit("no relay")

    received, gathered = [], threading.Event()

    def on_received(_agent, _stream, _component, length, data, _user):
        datagram = ctypes.string_at(data, length)
        received.append(datagram)
        if role == "answer":
            send(agent, STREAM, COMPONENT, length, datagram)

    on_received = Received(on_received)
    on_gathered = Gathered(lambda *_: gathered.set())
    attach_recv(agent, STREAM, COMPONENT, context, on_received, None)
    connect_signal(agent, b"candidate-gathering-done", on_gathered, None, None, 0)
    threading.Thread(target=main_loop_run, args=[main_loop_new(context, 0)], daemon=True).start()
    if not gather_candidates(agent, STREAM):
        sys.exit("candidates cannot be gathered")
    wait("candidates are gathered", gathered.is_set)
    say(generate_local_sdp(agent).decode())
    if parse_remote_sdp(agent, json.loads(sys.stdin.readline()).encode()) < 1:
        sys.exit("the other's description has no candidate")
    wait("the agents are connected", lambda: component_state(agent, STREAM, COMPONENT) == READY)
    local, remote = ctypes.POINTER(ctypes.c_int)(), ctypes.POINTER(ctypes.c_int)()
    if not selected_pair(agent, STREAM, COMPONENT, ctypes.byref(local), ctypes.byref(remote)):
        sys.exit("no pair is selected")
    # The type stands first in a candidate.
    say([KINDS[local[0]], KINDS[remote[0]]])
    if role == "answer":
        sys.stdin.read()
        return
    sys.stdin.readline()
    sent = [b"%d %s" % (each, b"x" * (each % 900)) for each in range(int(count))]
    for datagram in sent:
        send(agent, STREAM, COMPONENT, len(datagram), datagram)
        time.sleep(0.002)
    wait("all datagrams are back", lambda: len(received) >= len(sent))
    say(sorted(received) == sorted(sent))


main()
