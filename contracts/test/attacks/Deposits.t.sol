// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {NCNToken} from "../../src/NCNToken.sol";
import {Battlefield} from "./Battlefield.sol";
import {HostileToken} from "./HostileToken.sol";

/// @title Attacks on how money comes in: on allowances, permits and authorizations, and with tokens that keep a fee
contract DepositsAttack is Battlefield {
    bytes32 private constant PERMIT_TYPEHASH =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    function deployToken() internal override returns (NCNToken) {
        return new HostileToken(address(this), 1_000_000_000 ether); // well-behaved until a test says otherwise
    }

    /// @dev The victim gave the contract an unlimited allowance. Nobody else's call can use it.
    function test_namingTheVictimsAllowance() public {
        uint256 before = token.balanceOf(client);
        bytes4 reason = IERC20Errors.ERC20InsufficientAllowance.selector;
        bytes memory data = abi.encodeCall(payment.deposit, (attacker, attacker, accomplice, 100 ether));
        refused(attacker, address(payment), data, reason);
        data = abi.encodeCall(payment.deposit, (client, attacker, accomplice, 100 ether));
        refused(attacker, address(payment), data, reason);
        refused(attacker, address(payment), abi.encodeCall(payment.depositAccount, (100 ether)), reason);
        // Nor does the attacker's signature, nor none, pass for the victim's.
        bytes32 channel = payment.channelId(client, attacker, accomplice);
        bytes memory signature = authorization(ATTACKER_KEY, channel, 100 ether, 0);
        reason = ERC3009.ERC3009InvalidSignature.selector;
        data = authorizedCall(client, attacker, accomplice, 100 ether, 0, signature);
        refused(attacker, address(payment), data, reason);
        refused(attacker, address(payment), authorizedCall(client, attacker, accomplice, 1, 0, ""), reason);
        data = authorizedCall(client, attacker, accomplice, 1, 0, new bytes(65));
        refused(attacker, address(payment), data, reason);
        // With an allowance and tokens of its own, the attacker pays for the victim: a gift.
        token.transfer(attacker, 1 ether);
        vm.startPrank(attacker);
        token.approve(address(payment), 1 ether);
        payment.deposit(client, attacker, accomplice, 1 ether);
        vm.stopPrank();
        vm.assertEq(token.balanceOf(client), before, "the victim's balance");
        vm.assertEq(token.balanceOf(attacker), 0, "the attacker's balance");
        // The victim alone can take it out.
        bytes4 empty = IInferencePayment.InferencePayment__ChannelEmpty.selector;
        data = abi.encodeCall(payment.requestWithdrawal, (attacker, accomplice));
        refused(attacker, address(payment), data, empty);
        accepted(client, address(payment), data);
    }

    /// @dev The attacker plays the victim's permit first, to make the victim's own one fail. The allowance is there all
    /// the same, and only the victim can use it.
    function test_permitGriefing() public {
        vm.prank(client);
        token.approve(address(payment), 0);
        bytes32 structHash =
            keccak256(abi.encode(PERMIT_TYPEHASH, client, payment, 50 ether, token.nonces(client), block.timestamp));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(CLIENT_KEY, digest);
        bytes memory permit =
            abi.encodeCall(token.permit, (client, address(payment), 50 ether, block.timestamp, v, r, s));
        accepted(attacker, address(token), permit);
        bytes memory data = abi.encodeCall(payment.deposit, (attacker, attacker, accomplice, 50 ether));
        refused(attacker, address(payment), data, IERC20Errors.ERC20InsufficientAllowance.selector);
        vm.prank(client);
        (bool success,) = address(token).call(permit);
        vm.assertFalse(success, "a permit counts once");
        vm.prank(client);
        payment.deposit(client, client, gateway, 50 ether);
        vm.assertEq(leftIn(client, client, gateway), 1_050 ether);
    }

    /// @dev Whoever sees the victim's authorization can submit it first: into the channel that the victim named, for
    /// the amount that it named, once.
    function test_frontRunningAnAuthorization() public {
        uint256 before = token.balanceOf(client);
        bytes32 channel = payment.channelId(client, session, gateway);
        bytes memory signature = authorization(CLIENT_KEY, channel, 5 ether, "salt");
        bytes4 invalid = ERC3009.ERC3009InvalidSignature.selector;
        bytes memory data = authorizedCall(client, attacker, gateway, 5 ether, "salt", signature);
        refused(attacker, address(payment), data, invalid);
        data = authorizedCall(client, session, accomplice, 5 ether, "salt", signature);
        refused(attacker, address(payment), data, invalid);
        data = authorizedCall(attacker, session, gateway, 5 ether, "salt", signature);
        refused(attacker, address(payment), data, invalid);
        data = authorizedCall(client, session, gateway, 6 ether, "salt", signature);
        refused(attacker, address(payment), data, invalid);
        data = authorizedCall(client, session, gateway, 5 ether, "pepper", signature);
        refused(attacker, address(payment), data, invalid);
        // Past the contract, it can't be used at all: the caller has to be the payee, and a transfer has a type of its
        // own.
        bytes32 nonce = keccak256(abi.encode(channel, bytes32("salt")));
        bytes memory direct = abi.encodeWithSignature(
            "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            client,
            address(payment),
            5 ether,
            0,
            block.timestamp + 1 hours,
            nonce,
            signature
        );
        refused(attacker, address(token), direct, IERC20Errors.ERC20InvalidReceiver.selector);
        direct = abi.encodeWithSignature(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            client,
            address(payment),
            5 ether,
            0,
            block.timestamp + 1 hours,
            nonce,
            signature
        );
        refused(attacker, address(token), direct, invalid);
        direct = abi.encodeWithSignature("cancelAuthorization(address,bytes32,bytes)", client, nonce, signature);
        refused(attacker, address(token), direct, invalid);
        // First come: the same effect. Second come: none.
        data = authorizedCall(client, session, gateway, 5 ether, "salt", signature);
        accepted(attacker, address(payment), data);
        vm.assertEq(leftIn(client, session, gateway), 1_005 ether);
        vm.assertEq(token.balanceOf(client), before - 5 ether, "the victim's balance");
        refused(client, address(payment), data, ERC3009.ERC3009UsedAuthorization.selector);
    }

    function testFuzz_anAuthorizationFixesTheChannel(address signer, address to, uint96 amount, bytes32 salt) public {
        vm.assume(signer != address(0) && to != address(0) && amount != 0);
        bytes32 channel = payment.channelId(client, session, gateway);
        bytes memory signature = authorization(CLIENT_KEY, channel, 5 ether, "salt");
        if (signer == session && to == gateway && amount == 5 ether && salt == "salt") return;
        bytes memory data = authorizedCall(client, signer, to, amount, salt, signature);
        refused(attacker, address(payment), data, ERC3009.ERC3009InvalidSignature.selector);
    }

    /// @dev A token that keeps a fee would leave the contract owing more than it has: nothing comes in.
    function test_feeOnTransfer() public {
        HostileToken(address(token)).setFee(1);
        bytes4 reason = IInferencePayment.InferencePayment__TransferMismatch.selector;
        bytes memory data = abi.encodeCall(payment.deposit, (client, client, gateway, 5 ether));
        refused(client, address(payment), data, reason);
        refused(client, address(payment), abi.encodeCall(payment.depositAccount, (5 ether)), reason);
        bytes memory signature = authorization(CLIENT_KEY, payment.channelId(client, client, gateway), 5 ether, 0);
        refused(attacker, address(payment), authorizedCall(client, client, gateway, 5 ether, 0, signature), reason);
        reason = IValidatorRegistry.ValidatorRegistry__TransferMismatch.selector;
        refused(client, address(registry), abi.encodeCall(registry.registerValidator, (STAKE)), reason);
        refused(client, address(registry), abi.encodeCall(registry.distribute, (5 ether)), reason);
        token.transfer(validatorAt(0), 10 ether);
        refused(validatorAt(0), address(registry), abi.encodeCall(registry.addStake, (5 ether)), reason);
        vm.assertEq(leftIn(client, client, gateway), 1_000 ether);
        vm.assertEq(freeOf(client), 1_000 ether);
        vm.assertEq(registry.stakeOf(client), 0);
    }

    /// @dev Tokens that nobody deposited belong to nobody: no deposit can count them as its own.
    function test_donationsCreditNobody() public {
        token.transfer(attacker, 10 ether);
        vm.startPrank(attacker);
        token.transfer(address(payment), 10 ether);
        token.approve(address(payment), type(uint256).max);
        vm.stopPrank();
        bytes memory data = abi.encodeCall(payment.deposit, (attacker, attacker, accomplice, 10 ether));
        refused(attacker, address(payment), data, IERC20Errors.ERC20InsufficientBalance.selector);
        data = abi.encodeCall(payment.withdraw, (1));
        refused(attacker, address(payment), data, IInferencePayment.InferencePayment__InsufficientFunds.selector);
    }

    /// @dev A failed recovery gives the zero address: a channel of the zero signer would be anybody's.
    function test_zeroSigner() public {
        bytes4 reason = IInferencePayment.InferencePayment__ZeroAddress.selector;
        bytes memory data = abi.encodeCall(payment.deposit, (client, address(0), gateway, 1 ether));
        refused(client, address(payment), data, reason);
        data = abi.encodeCall(payment.deposit, (address(0), client, gateway, 1 ether));
        refused(client, address(payment), data, reason);
        data = abi.encodeCall(payment.deposit, (client, client, address(0), 1 ether));
        refused(client, address(payment), data, reason);
        IInferencePayment.Claim memory claim = claimOf(client, CLIENT_KEY, gateway, 1 ether, 1 ether);
        (claim.signer, claim.r, claim.vs) = (address(0), 0, 0);
        data = blindCall(gateway, 1, one(claim), one(node, 0.8 ether));
        refused(attacker, address(payment), data, IInferencePayment.InferencePayment__BadVoucher.selector);
    }
}
