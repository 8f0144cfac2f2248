// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Battlefield} from "./Battlefield.sol";

/// @title Attacks with the roles: a guardian that turns, and everybody who has no role
contract RolesAttack is Battlefield {
    function test_pauseKeepsNobodysMoney() public {
        IInferencePayment.Request[3] memory running;
        for (uint256 i = 0; i < 3; ++i) {
            running[i] = requestOf(10 ether);
            initiate(running[i]);
        }
        vm.prank(guardian);
        payment.pause();

        // What is stopped:
        bytes4 paused = IInferencePayment.InferencePayment__Paused.selector;
        bytes memory data = abi.encodeCall(payment.deposit, (client, client, gateway, 1 ether));
        refused(client, address(payment), data, paused);
        refused(client, address(payment), abi.encodeCall(payment.depositAccount, (1 ether)), paused);
        bytes memory signature = authorization(CLIENT_KEY, payment.channelId(client, client, gateway), 5 ether, 0);
        data = authorizedCall(client, client, gateway, 5 ether, 0, signature);
        refused(stranger, address(payment), data, paused);
        refused(client, address(payment), initiateCall(requestOf(1 ether)), paused);

        // What is not: settlement, decisions, refunds, both kinds of withdrawal, the validators' part.
        accepted(stranger, address(payment), hundredCall(1));
        accepted(stranger, address(payment), completeCall(running[0], 10 ether));
        accepted(stranger, address(payment), failCall(running[1]));
        vm.warp(uint256(running[2].expiry) + 1);
        accepted(stranger, address(payment), abi.encodeCall(payment.handleExpiredRequest, (running[2])));
        accepted(client, address(payment), abi.encodeCall(payment.withdraw, (freeOf(client))));
        accepted(gateway, address(payment), abi.encodeCall(payment.withdraw, (1 ether)));
        accepted(client, address(payment), abi.encodeCall(payment.requestWithdrawal, (client, gateway)));
        accepted(client, address(payment), abi.encodeCall(payment.cancelWithdrawal, (client, gateway)));
        accepted(client, address(payment), abi.encodeCall(payment.requestWithdrawal, (client, gateway)));
        accepted(client, address(payment), abi.encodeCall(payment.requestWithdrawal, (session, gateway)));
        vm.warp(START + 2 hours + payment.WITHDRAWAL_DELAY());
        data = abi.encodeCall(payment.finalizeWithdrawal, (client, client, gateway));
        accepted(stranger, address(payment), data);
        data = abi.encodeCall(payment.finalizeWithdrawal, (client, session, gateway));
        accepted(stranger, address(payment), data);
        accepted(stranger, address(payment), abi.encodeCall(payment.distributeValidatorPool, ()));
        accepted(timelock, address(payment), abi.encodeCall(payment.withdrawTreasury, (timelock, 5 ether)));
        vm.prank(validatorAt(0));
        registry.claimRewards();
        vm.prank(validatorAt(0));
        registry.requestExit();
        vm.assertEq(token.balanceOf(client), 1_000_000 ether - 100 ether - 10 ether, "all but what was served");
    }

    /// @dev With everybody gone, and everything paused, the client still gets its money back.
    function test_nobodyLeft() public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        initiate(request);
        vm.prank(guardian);
        payment.pause();
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            vm.prank(validatorAt(i));
            registry.requestExit();
        }
        vm.warp(START + 30 days);
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            vm.prank(validatorAt(i));
            registry.finalizeExit();
        }
        registry.advanceEpoch();
        vm.assertEq(registry.members(2).length, 0);
        vm.assertEq(token.balanceOf(address(registry)), 0);
        accepted(stranger, address(payment), abi.encodeCall(payment.handleExpiredRequest, (request)));
        accepted(client, address(payment), abi.encodeCall(payment.withdraw, (1_000 ether)));
        accepted(client, address(payment), abi.encodeCall(payment.requestWithdrawal, (client, gateway)));
        vm.warp(START + 30 days + payment.WITHDRAWAL_DELAY());
        payment.finalizeWithdrawal(client, client, gateway);
        vm.assertEq(token.balanceOf(client), 999_000 ether, "all but the other channel");
    }

    /// @dev The guardian can pause, and nothing else; who has no role can do nothing.
    function test_roles() public {
        bytes4 none = IAccessControl.AccessControlUnauthorizedAccount.selector;
        bytes32 admin = payment.DEFAULT_ADMIN_ROLE();
        address[4] memory callers = [guardian, attacker, gateway, validatorAt(0)];
        for (uint256 i = 0; i < callers.length; ++i) {
            address caller = callers[i];
            refused(caller, address(payment), abi.encodeCall(payment.unpause, ()), none);
            refused(caller, address(payment), abi.encodeCall(payment.withdrawTreasury, (caller, 0)), none);
            refused(caller, address(payment), abi.encodeCall(payment.grantRole, (admin, caller)), none);
            refused(caller, address(registry), abi.encodeCall(registry.setThreshold, (1)), none);
            refused(caller, address(registry), abi.encodeCall(registry.slash, (validatorAt(1), 10_000, 0)), none);
            refused(caller, address(registry), abi.encodeCall(registry.adjustReputation, (validatorAt(1), -1)), none);
            bytes32 role = registry.DISPUTES_ROLE();
            refused(caller, address(registry), abi.encodeCall(registry.grantRole, (role, caller)), none);
            if (i != 0) refused(caller, address(payment), abi.encodeCall(payment.pause, ()), none);
        }
        // Not even the admin reaches anything but the treasury.
        accepted(stranger, address(payment), hundredCall(1));
        bytes4 reason = IInferencePayment.InferencePayment__InsufficientFunds.selector;
        bytes memory data = abi.encodeCall(payment.withdrawTreasury, (timelock, 5 ether + 1));
        refused(timelock, address(payment), data, reason);
    }
}
