// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {DisputeActions} from "./DisputeActions.sol";

/// @title What holds whatever happens: the contracts beside the model
abstract contract Checks is DisputeActions {
    /// @notice 1. The contract has what it owes: deposits not spent, free balances, live escrow, treasury, pool. To the
    /// unit, it has that and what was given to it. The registry has stakes and rewards.
    function checkSolvency() external view {
        uint256 owed = donated;
        for (uint256 i = 0; i < books.length; ++i) {
            (uint96 deposited, uint96 spent,) = payment.channels(_idOf(books[i]));
            owed += deposited - spent;
        }
        for (uint256 i = 0; i < people.length; ++i) {
            (uint96 credit,) = payment.accounts(people[i]);
            vm.assertEq(credit, free[people[i]], "1: an account");
            owed += credit + payment.networkShare(people[i]);
        }
        uint256 live = 0;
        for (uint256 i = 0; i < cases.length; ++i) {
            IInferencePayment.Request storage request = cases[i].request;
            if (payment.requests(request.client, request.nonce) != 0) live += request.amount;
        }
        vm.assertEq(live, escrowed, "1: live escrow");
        (uint96 treasury_, uint96 pool_,) = payment.globals();
        uint256 balance = token.balanceOf(address(payment));
        vm.assertGe(balance, owed + live + treasury_ + pool_ - donated, "1: the contract owes more than it has");
        vm.assertEq(balance, owed + live + treasury_ + pool_, "1: the contract has more than it knows of");
        uint256 bound = donatedToRegistry + registry.carriedRewards();
        for (uint256 i = 0; i < candidates.length; ++i) {
            (, uint96 stake,,, uint96 rewards) = registry.validators(candidates[i]);
            bound += stake + rewards;
        }
        vm.assertEq(token.balanceOf(address(registry)), bound, "1: the registry's balance");
    }

    /// @notice 2. A request is in escrow until it ended, once; batches are settled once; the other deployment saw
    /// nothing.
    function checkReplays() external view {
        for (uint256 i = 0; i < cases.length; ++i) {
            IInferencePayment.Request memory request = cases[i].request;
            bytes32 expected = cases[i].outcome == Outcome.LIVE ? keccak256(abi.encode(request)) : bytes32(0);
            vm.assertEq(payment.requests(request.client, request.nonce), expected, "2: a request's commitment");
        }
        for (uint256 i = 0; i < gateways.length; ++i) {
            uint64 last = lastNonce[gateways[i]];
            vm.assertEq(payment.batchNonce(gateways[i]), last, "2: a gateway's last nonce");
            vm.assertEq(twin.batchNonce(gateways[i]), 0, "2: a batch of the other deployment");
            for (uint64 nonce = last > 191 ? last - 191 : 0; nonce <= last + 1; ++nonce) {
                bytes32 expected = settled[gateways[i]][nonce];
                vm.assertEq(payment.batchCommitment(gateways[i], nonce), expected, "2: a batch's commitment");
            }
        }
        vm.assertEq(token.balanceOf(address(twin)), wallet[address(twin)], "2: the other deployment paid");
    }

    /// @notice 3. A channel's spent never exceeds what was deposited, and is what the batches drew.
    function checkChannels() external view {
        for (uint256 i = 0; i < books.length; ++i) {
            (uint96 deposited, uint96 spent, uint64 unlockAt) = payment.channels(_idOf(books[i]));
            vm.assertLe(spent, deposited, "3: a channel spent more than it has");
            vm.assertEq(spent, books[i].spent, "3: what a channel spent");
            vm.assertEq(deposited, books[i].deposited, "3: what a channel has");
            vm.assertEq(unlockAt, books[i].unlockAt, "3: when a channel's exit ends");
        }
    }

    /// @notice 4. Whoever asks, every request that is in escrow can be refunded once it expired: here with everything
    /// paused, and no validator left. It changes the state: to be called last.
    function checkRefunds() external {
        vm.prank(guardian);
        payment.pause();
        for (uint256 i = 0; i < candidates.length; ++i) {
            IValidatorRegistry.State state = seats[candidates[i]].state;
            if (state != IValidatorRegistry.State.ACTIVE && state != IValidatorRegistry.State.JAILED) continue;
            vm.prank(candidates[i]);
            registry.requestExit();
        }
        vm.warp(block.timestamp + 30 days);
        uint32 last = registry.advanceEpoch();
        vm.assertEq(registry.members(last).length, 0, "4: there are validators left");
        for (uint256 i = 0; i < cases.length; ++i) {
            if (cases[i].outcome != Outcome.LIVE) continue;
            IInferencePayment.Request memory request = cases[i].request;
            (uint96 before,) = payment.accounts(request.client);
            vm.prank(address(uint160(0xA0B0 + i)));
            payment.handleExpiredRequest(request);
            (uint96 credit,) = payment.accounts(request.client);
            vm.assertEq(credit - before, request.amount, "4: a refund");
        }
    }

    /// @notice 5. The members of every epoch are for ever those who were active when it began. Who is active now are the
    /// validators that are, and no bond.
    function checkEpochs() external view {
        address[] memory active = registry.activeValidators();
        uint256 expected = 0;
        for (uint256 i = 0; i < candidates.length; ++i) {
            if (seats[candidates[i]].state == IValidatorRegistry.State.ACTIVE) ++expected;
        }
        vm.assertEq(active.length, expected, "5: how many are active");
        for (uint256 i = 0; i < active.length; ++i) {
            Seat storage seat = seats[active[i]];
            vm.assertTrue(seat.state == IValidatorRegistry.State.ACTIVE && !seat.isBond, "5: who is active");
        }
        vm.assertEq(registry.currentEpoch(), epoch, "5: the present epoch");
        for (uint32 i = 1; i <= epoch; ++i) {
            address[] memory members = registry.members(i);
            vm.assertEq(members.length, pinned[i].length, "5: an epoch's number of members");
            vm.assertEq(registry.validUntil(i), validUntil[i], "5: how long an epoch's members may sign");
            vm.assertEq(registry.quorumSize(i), quorumSize[i], "5: how many of them are a quorum");
            for (uint256 j = 0; j < members.length; ++j) {
                vm.assertTrue(_isMember(i, members[j]), "5: somebody became a member later");
                for (uint256 k = 0; k < j; ++k) {
                    vm.assertTrue(members[j] != members[k], "5: a member is there twice");
                }
            }
        }
    }

    /// @notice 6. Compute gets at most 80% of what is settled, short by at most one unit for each receipt.
    function checkCompute() external view {
        vm.assertLe(batchesCompute * 100, batchesTotal * 80, "6: compute got more than 80%");
        uint256 least = (batchesTotal * 80) / 100;
        vm.assertGe(batchesCompute + batchesReceipts + batchesSettled, least, "6: compute got too little");
    }

    /// @notice 7. Nothing is lost: after compute, the gateway (10%) and the pool (5%), the treasury gets all that is
    /// left.
    function checkDust() external view {
        uint256 total = batchesTotal + feesTotal;
        uint256 compute = batchesCompute + feesCompute;
        vm.assertEq(compute + gatewaysTotal + poolTotal + treasuryTotal, total, "7: the shares' sum");
        vm.assertGe(treasuryTotal * 20, total, "7: the treasury got less than 5%");
        vm.assertLe(gatewaysTotal * 10, total, "7: the gateways got more than 10%");
        vm.assertLe(poolTotal * 20, total, "7: the validators got more than 5%");
        (uint96 treasury_, uint96 pool_, bool paused_) = payment.globals();
        vm.assertEq(treasury_, treasury, "7: the treasury");
        vm.assertEq(pool_, pool, "7: the validators' pool");
        vm.assertEq(paused_, paused);
        for (uint256 i = 0; i < gateways.length; ++i) {
            vm.assertEq(payment.networkShare(gateways[i]), waiting[gateways[i]], "7: what waits to be booked");
        }
    }

    /// @notice 8. A slash takes its tier of what is left, from unbonding stake too, once for each piece of evidence; it
    /// goes to the treasury.
    function checkSlashing() external view {
        vm.assertEq(token.balanceOf(treasurer), slashed, "8: what was slashed");
        for (uint256 i = 0; i < candidates.length; ++i) {
            Seat storage seat = seats[candidates[i]];
            (IValidatorRegistry.State state, uint96 stake, uint64 exitAt,, uint96 rewards) =
                registry.validators(candidates[i]);
            vm.assertEq(uint8(state), uint8(seat.state), "8: a validator's state");
            vm.assertEq(stake, seat.stake, "8: a validator's stake");
            vm.assertEq(exitAt, seat.exitAt, "8: when a validator's exit ends");
            vm.assertEq(rewards, seat.rewards, "8: a validator's rewards");
            vm.assertTrue(registry.isBond(candidates[i]) == seat.isBond, "8: whose stake is a bond");
        }
    }

    /// @notice 9. Everybody has what was paid to them less what they paid; a deposit moved what it says (see the
    /// actions).
    function checkWallets() external view {
        for (uint256 i = 0; i < people.length; ++i) {
            vm.assertEq(token.balanceOf(people[i]), wallet[people[i]], "9: what somebody has");
        }
    }
}
