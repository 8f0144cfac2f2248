// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {NCNToken} from "../../src/NCNToken.sol";
import {Battlefield} from "./Battlefield.sol";
import {HostileToken} from "./HostileToken.sol";

/// @title Attacks on what is paid out: by payees that can't be paid, and by whoever submits
contract PayoutsAttack is Battlefield {
    function deployToken() internal override returns (NCNToken) {
        return new HostileToken(address(this), 1_000_000_000 ether); // well-behaved until a test says otherwise
    }

    /// @dev A payee that the token does not pay would hold up all others: it is credited, and takes the money when it
    /// can.
    function test_blockedPayee() public {
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](3);
        credits[0] = IInferencePayment.Credit(accomplice, 30 ether);
        credits[1] = IInferencePayment.Credit(node, 30 ether);
        credits[2] = IInferencePayment.Credit(stranger, 20 ether);
        IInferencePayment.Claim[] memory claims = one(claimOf(client, CLIENT_KEY, gateway, 100 ether, 100 ether));
        block_(node);
        accepted(attacker, address(payment), blindCall(gateway, 1, claims, credits));
        vm.assertEq(token.balanceOf(accomplice), 30 ether, "before it in the list");
        vm.assertEq(token.balanceOf(stranger), 20 ether, "after it in the list");
        vm.assertEq(token.balanceOf(gateway), 10 ether, "the gateway");
        vm.assertEq(token.balanceOf(node), 0);
        vm.assertEq(freeOf(node), 30 ether, "credited");
        vm.assertEq(token.balanceOf(address(payment)), 2_940 ether, "paid once");
        bytes memory withdraw = abi.encodeCall(payment.withdraw, (30 ether));
        refused(node, address(payment), withdraw, HostileToken.HostileToken__Refused.selector);
        vm.assertEq(freeOf(node), 30 ether, "not lost by trying");
        refused(attacker, address(payment), withdraw, IInferencePayment.InferencePayment__InsufficientFunds.selector);
        HostileToken(address(token)).setRefused(node, false);
        accepted(node, address(payment), withdraw);
        vm.assertEq(token.balanceOf(node), 30 ether);
        refused(node, address(payment), withdraw, IInferencePayment.InferencePayment__InsufficientFunds.selector);
    }

    function test_blockedGateway() public {
        block_(gateway);
        accepted(attacker, address(payment), hundredCall(1));
        vm.assertEq(token.balanceOf(node), 80 ether);
        vm.assertEq(freeOf(gateway), 10 ether);
    }

    function test_blockedNodeOfARequest() public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        initiate(request);
        block_(node);
        accepted(attacker, address(payment), completeCall(request, 10 ether));
        vm.assertEq(freeOf(node), 8 ether);
        vm.assertEq(freeOf(gateway), 1 ether);
    }

    function test_blockedClient() public {
        vm.prank(client);
        payment.requestWithdrawal(client, gateway);
        vm.warp(START + payment.WITHDRAWAL_DELAY());
        block_(client);
        payment.finalizeWithdrawal(client, client, gateway);
        vm.assertEq(freeOf(client), 2_000 ether, "the account and the rest of the channel");
        // A refund needs no transfer at all.
        IInferencePayment.Request memory request = requestOf(10 ether);
        initiate(request);
        vm.warp(uint256(request.expiry) + 1);
        accepted(attacker, address(payment), abi.encodeCall(payment.handleExpiredRequest, (request)));
        vm.assertEq(freeOf(client), 2_000 ether);
    }

    /// @dev Whoever submits chooses the gas. With too little nothing happens; nobody is credited instead of paid, or
    /// left out.
    function test_starvingTheTransfers() public {
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](8);
        for (uint256 i = 0; i < credits.length; ++i) {
            credits[i] = IInferencePayment.Credit(payeeAt(i), 10 ether);
        }
        IInferencePayment.Claim[] memory claims = one(claimOf(client, CLIENT_KEY, gateway, 100 ether, 100 ether));
        bytes memory data = blindCall(gateway, 1, claims, credits);
        // The least gas that does, and what lies below it: where one of the last calls gets too little.
        (uint256 low, uint256 high) = (60_000, 2_000_000);
        vm.assertTrue(settlesWith(high, data), "more than enough");
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (settlesWith(middle, data)) high = middle;
            else low = middle;
        }
        uint256 failures = 0;
        for (uint256 i = 0; i < 400; ++i) {
            if (!settlesWith(high - 40_000 + 101 * i, data)) ++failures;
        }
        vm.assertTrue(failures > 300, "the range of gas tells nothing");
    }

    /// @dev Whether a batch over eight payees is settled with so much gas; if so, all are paid. Nothing is kept.
    function settlesWith(uint256 gas_, bytes memory data) private returns (bool success) {
        uint256 snapshot = vm.snapshotState();
        (success,) = address(payment).call{gas: gas_}(data);
        for (uint256 i = 0; i < 8; ++i) {
            vm.assertEq(token.balanceOf(payeeAt(i)), success ? 10 ether : 0, "not paid");
        }
        vm.assertEq(token.balanceOf(gateway), success ? 10 ether : 0, "the gateway is not paid");
        vm.assertEq(payment.batchNonce(gateway), success ? 1 : 0);
        vm.revertToState(snapshot);
    }

    /// @dev Where the contract itself, or nobody, is named as payee, the money is not anybody else's.
    function test_oddPayees() public {
        IInferencePayment.Claim[] memory claims = one(claimOf(client, CLIENT_KEY, gateway, 100 ether, 100 ether));
        accepted(attacker, address(payment), blindCall(gateway, 1, claims, one(address(payment), 80 ether)));
        claims = one(claimOf(client, CLIENT_KEY, gateway, 200 ether, 200 ether));
        accepted(attacker, address(payment), blindCall(gateway, 2, claims, one(address(0), 80 ether)));
        vm.assertEq(freeOf(address(0)), 80 ether);
        claims = one(claimOf(client, CLIENT_KEY, gateway, 300 ether, 300 ether));
        accepted(attacker, address(payment), blindCall(gateway, 3, claims, one(address(token), 80 ether)));
        vm.assertEq(leftIn(client, client, gateway), 700 ether);
        vm.assertEq(token.balanceOf(address(payment)), 3_000 ether - 3 * 10 ether - 80 ether);
    }

    /// @dev A validator that can't be paid keeps neither the pool nor the others from being paid.
    function test_blockedValidator() public {
        accepted(attacker, address(payment), hundredCall(1));
        block_(validatorAt(0));
        payment.distributeValidatorPool();
        bytes4 reason = HostileToken.HostileToken__Refused.selector;
        refused(validatorAt(0), address(registry), abi.encodeCall(registry.claimRewards, ()), reason);
        vm.prank(validatorAt(1));
        registry.claimRewards();
        vm.assertEq(token.balanceOf(validatorAt(1)), 1 ether);
        HostileToken(address(token)).setRefused(validatorAt(0), false);
        vm.prank(validatorAt(0));
        registry.claimRewards();
        vm.assertEq(token.balanceOf(validatorAt(0)), 1 ether);
    }

    /// @dev Whoever joins when the pool is full gets nothing of it before it is a member; whoever left gets nothing.
    function test_latecomers() public {
        accepted(attacker, address(payment), hundredCall(1));
        address late = registerValidator(ATTACKER_KEY, STAKE);
        vm.prank(validatorAt(4));
        registry.requestExit();
        payment.distributeValidatorPool();
        (,,,, uint96 rewards) = registry.validators(late);
        vm.assertEq(rewards, 0, "no member yet");
        (,,,, rewards) = registry.validators(validatorAt(4));
        vm.assertEq(rewards, 0, "no member any more");
        (,,,, rewards) = registry.validators(validatorAt(0));
        vm.assertEq(rewards, 1.25 ether);
    }

    /// @dev The network's share of requests is neither lost nor paid twice, whoever books it and how often.
    function test_networkShareTwice() public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        initiate(request);
        accepted(attacker, address(payment), completeCall(request, 10 ether));
        vm.assertEq(payment.networkShare(gateway), 1 ether);
        bytes memory book = abi.encodeCall(payment.bookNetworkShare, (gateway));
        accepted(attacker, address(payment), book);
        refused(attacker, address(payment), book, IInferencePayment.InferencePayment__ZeroAmount.selector);
        vm.prank(gateway);
        payment.withdraw(1 ether);
        (uint96 treasury, uint96 pool,) = payment.globals();
        vm.assertEq(treasury, 0.5 ether);
        vm.assertEq(pool, 0.5 ether);
        bytes memory more = abi.encodeCall(payment.withdraw, (1));
        refused(gateway, address(payment), more, IInferencePayment.InferencePayment__InsufficientFunds.selector);
    }

    function block_(address account) private {
        HostileToken(address(token)).setRefused(account, true);
    }

    function payeeAt(uint256 i) private pure returns (address) {
        return address(uint160(0xCAFE0000 + i));
    }
}
