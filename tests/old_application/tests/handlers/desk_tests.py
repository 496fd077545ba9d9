from lamson.testing import *
from lamson.routing import Router
from lamson.server import SMTPError
import os
import re

client = RouterConversation("Zed <zed@customer.com>", "Help me")
support = "support@support.example.com"


def setup_func():
    Router.clear_states()
    clear_queue()


def teardown_func():
    clear_queue()


def open_ticket():
    client.begin()
    msg = client.say(support, "It does not work.", "ticket-")
    return msg['from']


@with_setup(setup_func, teardown_func)
def test_opens_a_ticket():
    client.begin()
    msg = client.say(support, "It does not work.", "ticket-")
    assert_true(msg['subject'].startswith('['))
    assert_equal(msg['to'], 'zed@customer.com')
    assert_equal(len(msg.all_parts()), 2)
    assert_in_state('app.handlers.desk', support, 'zed@customer.com', 'OPEN')


@with_setup(setup_func, teardown_func)
def test_a_ticket_is_worked_on_and_closed():
    addr = open_ticket()
    number = re.match("ticket-([a-z0-9]+)@", addr).group(1)
    client.say(addr, "More about it.", "agents@example.com")
    msg = client.say("ticket-%s-status@support.example.com" % number, "?", "Status of")
    assert_in("<li", str(msg))
    client.say("ticket-%s-close@support.example.com" % number, "thanks", "It is closed")
    assert_raises(RuntimeError, client.say, addr, "again")
    assert_in_state('app.handlers.desk', addr, 'zed@customer.com', 'ERROR')


@with_setup(setup_func)
@raises(SMTPError)
def test_there_is_no_such_ticket():
    open_ticket()
    client.say("ticket-zzz@support.example.com", "x")


class TestNotes(object):
    def setup(self):
        setup_func()

    def test_keeps_a_note(self):
        client.begin()
        msg = client.say("note-my.day@support.example.com", "It was good", "note-confirm-")
        client.say(msg['reply-to'], "yes")
        assert_in_state('app.handlers.notes', msg['reply-to'], client.From, 'KEEPING')
        eq_(open("run/notes/my.day.txt").read().strip().split("\n")[-1], "It was good")
        client.say("note-my.day-drop@support.example.com", "x")
        assert not os.path.exists("run/notes/my.day.txt")

    def test_comments(self):
        client.begin()
        client.say("comment-my.day@support.example.com", "nice", "comments@")
        assert delivered("nice")
        assert not delivered("never said")
        assert_equal(queue().count(), 1)
