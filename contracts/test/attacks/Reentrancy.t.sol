// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {NCNToken} from "../../src/NCNToken.sol";
import {Battlefield} from "./Battlefield.sol";
import {HostileToken} from "./HostileToken.sol";

/// @title Attacks by calling back in the middle of a transfer: every entry, from within every entry that moves tokens
/// @notice Every call that is tried would succeed if it were not made in the middle of another one (which is shown
/// first), so that it is the guard and nothing else that refuses it.
contract ReentrancyAttack is Battlefield {
    HostileToken private evil;
    /// @dev What the hostile token's own request is.
    IInferencePayment.Request private own;
    uint256 private snapshot;

    function deployToken() internal override returns (NCNToken) {
        evil = new HostileToken(address(this), 1_000_000_000 ether);
        return evil;
    }

    /// @dev The token has an account, a channel that is exiting, a request, a stake that is unbonded, rewards.
    function setUp() public override {
        super.setUp();
        token.transfer(address(evil), 10 * STAKE);
        act(address(token), abi.encodeCall(token.approve, (address(payment), type(uint256).max)));
        act(address(token), abi.encodeCall(token.approve, (address(registry), type(uint256).max)));
        act(address(payment), abi.encodeCall(payment.depositAccount, (100 ether)));
        act(address(payment), abi.encodeCall(payment.deposit, (address(evil), session, gateway, 100 ether)));
        act(address(registry), abi.encodeCall(registry.registerValidator, (STAKE)));
        nextEpoch();
        accepted(stranger, address(payment), settleAs(1));
        payment.distributeValidatorPool();
        act(address(registry), abi.encodeCall(registry.requestExit, ()));
        vm.warp(START + 1 days + registry.unbondingPeriod() - 2 days);
        registry.advanceEpoch();
        act(address(payment), abi.encodeCall(payment.requestWithdrawal, (session, gateway)));
        vm.prank(client);
        payment.requestWithdrawal(session, gateway);
        vm.warp(START + 1 days + registry.unbondingPeriod());
        registry.advanceEpoch();
        own = requestOf(10 ether);
        own.client = address(evil);
        (, own.nonce) = payment.accounts(address(evil));
        act(address(payment), initiateAs(own));
        vm.prank(timelock);
        payment.grantRole(bytes32(0), address(evil));
        registry.grantRole(registry.DISPUTES_ROLE(), address(evil));
        accepted(stranger, address(payment), settleAs(2));
        registerValidator(ATTACKER_KEY, 2 * STAKE);
        snapshot = vm.snapshotState();
    }

    /// @dev All entries of the payment contract that move tokens, each tried within each other, and within itself.
    function test_payment() public {
        bytes[] memory entries = paymentEntries();
        all(address(payment), entries, address(payment), guardedPaymentEntries(), true);
    }

    function test_registry() public {
        all(address(registry), registryEntries(), address(registry), registryEntries(), true);
    }

    function test_registryWhileRegistering() public {
        act(address(registry), abi.encodeCall(registry.finalizeExit, ()));
        snapshot = vm.snapshotState();
        bytes[] memory entries = registryEntries();
        entries[0] = abi.encodeCall(registry.registerValidator, (STAKE));
        all(address(registry), entries, address(registry), entries, true);
        act(address(registry), entries[0]);
        snapshot = vm.snapshotState();
        entries[0] = abi.encodeCall(registry.addStake, (1 ether));
        all(address(registry), entries, address(registry), entries, true);
    }

    /// @dev The two contracts have a guard each and share no money: one can be called within the other, and whatever
    /// order that makes, both still have what they owe.
    function test_acrossContracts() public {
        all(address(registry), registryEntries(), address(payment), guardedPaymentEntries(), false);
        all(address(payment), paymentEntries(), address(registry), registryEntries(), false);
    }

    /// @dev What only books has no guard and needs none: within a payment it does what it does after it.
    function test_bookingsInTheMiddle() public {
        bytes[] memory bookings = new bytes[](6);
        IInferencePayment.Request memory another = requestOf(10 ether);
        another.client = address(evil);
        another.nonce = own.nonce + 1;
        bookings[0] = initiateAs(another);
        bookings[1] = failAs(own);
        bookings[2] = abi.encodeCall(payment.cancelWithdrawal, (session, gateway));
        bookings[3] = abi.encodeCall(payment.bookNetworkShare, (gateway));
        bookings[4] = abi.encodeCall(payment.pause, ());
        bookings[5] = abi.encodeCall(payment.requestWithdrawal, (attacker, gateway));
        bytes32 role = payment.GUARDIAN_ROLE();
        vm.prank(timelock);
        payment.grantRole(role, address(evil));
        IInferencePayment.Request memory request = requestOf(10 ether);
        initiateNow(request);
        accepted(stranger, address(payment), completeAs(request));
        act(address(payment), abi.encodeCall(payment.deposit, (address(evil), attacker, gateway, 1 ether)));
        snapshot = vm.snapshotState();
        bytes[] memory entries = paymentEntries();
        for (uint256 i = 0; i < entries.length; ++i) {
            for (uint256 j = 0; j < bookings.length; ++j) {
                evil.arm(address(payment), bookings[j]);
                act(address(payment), entries[i]);
                // But for what the payment itself has just ended: the channel's exit, the request.
                bool ended = (i == 3 && j == 2) || (i == 5 && j == 1);
                vm.assertTrue(evil.fired() && evil.hit() != ended, "a booking in the middle of a payment");
                assertSolvent();
                vm.revertToState(snapshot);
                snapshot = vm.snapshotState();
            }
        }
    }

    /// @dev A refund in the middle of a payment, and a second one after it.
    function test_refundInTheMiddle() public {
        vm.warp(uint256(own.expiry) + 1);
        bytes memory refund = abi.encodeCall(payment.handleExpiredRequest, (own));
        uint96 before = freeOf(address(evil));
        evil.arm(address(payment), refund);
        act(address(payment), abi.encodeCall(payment.withdraw, (1 ether)));
        vm.assertTrue(evil.fired() && evil.hit(), "a refund in the middle");
        vm.assertEq(freeOf(address(evil)), before - 1 ether + 10 ether);
        refused(stranger, address(payment), refund, IInferencePayment.InferencePayment__NotInEscrow.selector);
        assertSolvent();
    }

    // --- inside ---

    /// @dev Tries every inner call within every outer one; all are made by the token.
    function all(address outer, bytes[] memory outers, address inner, bytes[] memory inners, bool guarded) private {
        bytes4 reason = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
        for (uint256 i = 0; i < inners.length; ++i) {
            act(inner, inners[i]); // by itself it succeeds
            vm.revertToState(snapshot);
            snapshot = vm.snapshotState();
        }
        for (uint256 i = 0; i < outers.length; ++i) {
            for (uint256 j = 0; j < inners.length; ++j) {
                evil.arm(inner, inners[j]);
                act(outer, outers[i]);
                vm.assertTrue(evil.fired(), "the token did not strike");
                if (guarded) {
                    vm.assertFalse(evil.hit(), "a re-entering call succeeded");
                    vm.assertEq(bytes32(bytes4(evil.result())), bytes32(reason), "refused for another reason");
                }
                assertSolvent();
                vm.revertToState(snapshot);
                snapshot = vm.snapshotState();
            }
        }
    }

    /// @dev What moves tokens, in the token's own name.
    function paymentEntries() private view returns (bytes[] memory entries) {
        entries = new bytes[](9);
        entries[0] = abi.encodeCall(payment.deposit, (address(evil), session, gateway, 1 ether));
        entries[1] = abi.encodeCall(payment.depositAccount, (1 ether));
        entries[2] = abi.encodeCall(payment.withdraw, (1 ether));
        entries[3] = abi.encodeCall(payment.finalizeWithdrawal, (address(evil), session, gateway));
        entries[4] = settleAs(3);
        entries[5] = completeAs(own);
        entries[6] = abi.encodeCall(payment.distributeValidatorPool, ());
        entries[7] = abi.encodeCall(payment.withdrawTreasury, (address(evil), 1 ether));
        bytes32 channel = payment.channelId(client, session, gateway);
        entries[8] = authorizedCall(
            client, session, gateway, 1 ether, "in time", authorization(CLIENT_KEY, channel, 1 ether, "in time")
        );
    }

    /// @dev The same with other arguments where two of the same would hinder each other even without a guard.
    function guardedPaymentEntries() private view returns (bytes[] memory entries) {
        entries = paymentEntries();
        entries[3] = abi.encodeCall(payment.finalizeWithdrawal, (client, session, gateway));
        entries[4] = settleAs(4);
    }

    function registryEntries() private view returns (bytes[] memory entries) {
        entries = new bytes[](5);
        entries[0] = abi.encodeCall(registry.finalizeExit, ());
        entries[1] = abi.encodeCall(registry.claimRewards, ());
        entries[2] = abi.encodeCall(registry.distribute, (1 ether));
        entries[3] = abi.encodeCall(registry.slash, (vm.addr(ATTACKER_KEY), 1_000, "evidence"));
        entries[4] = abi.encodeCall(registry.slash, (vm.addr(ATTACKER_KEY), 1_000, "other evidence"));
    }

    function act(address target, bytes memory data) private {
        evil.act(target, data);
    }

    /// @dev Signatures of validators 0, 1 and 2, wherever they stand in the epoch.
    function quorum(uint32 epoch, bytes32 digest) private view returns (uint256 bitmap, bytes memory signatures) {
        address[] memory members = registry.members(epoch);
        for (uint256 i = 0; i < members.length; ++i) {
            for (uint256 j = 0; j < 4; ++j) {
                if (members[i] != validatorAt(j)) continue;
                bitmap |= 1 << i;
                signatures = bytes.concat(signatures, signatureOf(validatorKey(j), digest));
            }
        }
    }

    function settleAs(uint64 nonce) private view returns (bytes memory) {
        (
            IInferencePayment.Batch memory batch,
            IInferencePayment.Claim[] memory claims,
            IInferencePayment.Credit[] memory credits
        ) = hundred(nonce);
        (uint256 bitmap, bytes memory signatures) = quorum(batch.epoch, payment.hashBatch(batch));
        return abi.encodeCall(payment.settleBatch, (batch, claims, credits, bitmap, signatures));
    }

    function initiateAs(IInferencePayment.Request memory request) private view returns (bytes memory) {
        (uint256 bitmap, bytes memory signatures) = quorum(request.epoch, preprocessOf(request));
        return abi.encodeCall(payment.initiateInferenceRequest, (request, bitmap, signatures));
    }

    function initiateNow(IInferencePayment.Request memory request) private {
        accepted(request.client, address(payment), initiateAs(request));
    }

    function completeAs(IInferencePayment.Request memory request) private view returns (bytes memory) {
        bytes32 id = payment.requestId(request.client, request.nonce);
        (uint256 bitmap, bytes memory signatures) =
            quorum(request.epoch, payment.hashCompletion(id, "output", request.amount));
        uint96 fee = request.amount;
        return abi.encodeCall(payment.completeInferenceRequest, (request, "output", fee, bitmap, signatures));
    }

    function failAs(IInferencePayment.Request memory request) private view returns (bytes memory) {
        bytes32 id = payment.requestId(request.client, request.nonce);
        (uint256 bitmap, bytes memory signatures) = quorum(request.epoch, payment.hashFailure(id));
        return abi.encodeCall(payment.markRequestFailed, (request, bitmap, signatures));
    }

    /// @dev Both contracts have, to the unit, what they owe.
    function assertSolvent() private view {
        (uint96 treasury, uint96 pool,) = payment.globals();
        uint256 owed = uint256(treasury) + pool + payment.networkShare(gateway);
        owed += uint256(freeOf(client)) + freeOf(address(evil)) + freeOf(gateway) + freeOf(node);
        owed += uint256(leftIn(client, client, gateway)) + leftIn(client, session, gateway);
        owed += uint256(leftIn(address(evil), session, gateway)) + leftIn(address(evil), attacker, gateway);
        for (uint64 nonce = 0; nonce < 4; ++nonce) {
            if (payment.requests(address(evil), nonce) != 0) owed += 10 ether;
            if (payment.requests(client, nonce) != 0) owed += 10 ether;
        }
        vm.assertEq(token.balanceOf(address(payment)), owed, "the payment contract");
        uint256 bound = registry.carriedRewards();
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            bound += stakeAndRewards(validatorAt(i));
        }
        bound += stakeAndRewards(address(evil)) + stakeAndRewards(vm.addr(ATTACKER_KEY));
        vm.assertEq(token.balanceOf(address(registry)), bound, "the registry");
    }

    function stakeAndRewards(address validator) private view returns (uint256) {
        (, uint96 stake,,, uint96 rewards) = registry.validators(validator);
        return uint256(stake) + rewards;
    }
}
