import ncn_sticky

from ncn_framework.testing.conformance import check_router
from ncn_framework.testing.fakes import fake_candidates


async def test_keeps_the_contract_of_a_router() -> None:
    await check_router(ncn_sticky)


async def test_takes_the_lowest_address() -> None:
    candidates = fake_candidates(5)
    route = await ncn_sticky.lowest(candidates)
    assert route.node == min(candidate.node for candidate in candidates)
