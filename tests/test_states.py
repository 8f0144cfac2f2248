"""The table of states is complete, and no walk through it gets lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.errors import IllegalTransition
from ncn_framework.states import TERMINAL, TRANSITIONS, State, check_move

ENDS = {State.FAILED, State.CANCELLED, State.EXPIRED}


def test_every_state_has_a_row_and_every_state_is_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {after for row in TRANSITIONS.values() for after in row}
    assert reached == set(State) - {State.RECEIVED}


def test_terminal_states_lead_nowhere_but_to_a_refund() -> None:
    assert {state for state in State if TRANSITIONS[state] <= {State.REFUNDED}} == TERMINAL
    assert TRANSITIONS[State.SETTLED] == TRANSITIONS[State.REFUNDED] == frozenset()


@pytest.mark.parametrize("state", [state for state in State if state not in TERMINAL])
def test_every_state_on_the_way_can_fail_expire_and_be_cancelled(state: State) -> None:
    assert TRANSITIONS[state] > ENDS


def test_the_value_is_what_clients_see() -> None:
    assert [str(state) for state in State] == [state.name for state in State]


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_a_move_is_allowed_or_refused_by_the_table(before: State, after: State) -> None:
    if after in TRANSITIONS[before]:
        check_move(before, after)
    else:
        with pytest.raises(IllegalTransition, match=f"in {before} cannot move to {after}; allowed: "):
            check_move(before, after)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_walk_ends_and_never_settles_what_was_not_validated(data: st.DataObject) -> None:
    path = [State.RECEIVED]
    while choices := sorted(TRANSITIONS[path[-1]]):
        path.append(data.draw(st.sampled_from(choices)))
    assert len(path) == len(set(path)), "no state twice"
    assert path[-1] in (State.SETTLED, State.REFUNDED)
    if State.SETTLED in path:
        wanted = [State.RECEIVED, State.ROUTED, State.RESERVED, State.EXECUTING, State.EXECUTED, State.VALIDATED]
        assert [state for state in path if state in wanted] == wanted
        assert (State.AWAITING_PAYMENT in path) == (State.PAID in path)
