// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Battlefield} from "./Battlefield.sol";

/// @title Attacks on channels: by clients that want their money back, and by gateways that want more than was used
contract ChannelsAttack is Battlefield {
    // --- clients ---

    /// @dev The exit is requested early and left open, to take the deposit back at the moment of a settlement. Its
    /// window ends; the next exit takes the whole delay again.
    function test_preArmedExit() public {
        vm.prank(client);
        payment.requestWithdrawal(client, gateway);
        bytes memory finalize = abi.encodeCall(payment.finalizeWithdrawal, (client, client, gateway));
        refused(client, address(payment), finalize, IInferencePayment.InferencePayment__StillLocked.selector);
        // It can't be requested again meanwhile, to move the window.
        bytes memory request = abi.encodeCall(payment.requestWithdrawal, (client, gateway));
        refused(client, address(payment), request, IInferencePayment.InferencePayment__AlreadyExiting.selector);
        uint256 lapse = START + payment.WITHDRAWAL_DELAY() + payment.WITHDRAWAL_WINDOW();
        vm.warp(lapse);
        refused(client, address(payment), request, IInferencePayment.InferencePayment__AlreadyExiting.selector);
        vm.warp(lapse + 1);
        refused(client, address(payment), finalize, IInferencePayment.InferencePayment__NotExiting.selector);
        // A top-up does not revive it, and a new request waits again.
        vm.prank(client);
        payment.deposit(client, client, gateway, 1 ether);
        refused(client, address(payment), finalize, IInferencePayment.InferencePayment__NotExiting.selector);
        accepted(client, address(payment), request);
        refused(client, address(payment), finalize, IInferencePayment.InferencePayment__StillLocked.selector);
        vm.warp(block.timestamp + payment.WITHDRAWAL_DELAY() - 1);
        refused(client, address(payment), finalize, IInferencePayment.InferencePayment__StillLocked.selector);
        vm.warp(block.timestamp + 1);
        accepted(attacker, address(payment), finalize);
        vm.assertEq(leftIn(client, client, gateway), 0);
    }

    /// @dev An exit that runs does not keep what was served from being settled; the client gets the rest.
    function test_exitBeforeSettlement() public {
        vm.prank(client);
        payment.requestWithdrawal(client, gateway);
        vm.warp(block.timestamp + payment.WITHDRAWAL_DELAY()); // the last moment, when both are possible
        accepted(stranger, address(payment), hundredCall(1));
        uint256 before = token.balanceOf(client);
        payment.finalizeWithdrawal(client, client, gateway);
        vm.assertEq(token.balanceOf(client) - before, 900 ether, "the rest");
        vm.assertEq(token.balanceOf(node), 80 ether, "what was served");
        bytes memory again = abi.encodeCall(payment.finalizeWithdrawal, (client, client, gateway));
        refused(client, address(payment), again, IInferencePayment.InferencePayment__NotExiting.selector);
    }

    /// @dev Nobody ends or begins another's exit: not by a deposit of one unit, not as the session key, not as the
    /// gateway.
    function test_meddlingWithAnExit() public {
        bytes memory request = abi.encodeCall(payment.requestWithdrawal, (session, gateway));
        bytes4 empty = IInferencePayment.InferencePayment__ChannelEmpty.selector;
        refused(session, address(payment), request, empty);
        refused(gateway, address(payment), request, empty);
        accepted(client, address(payment), request);
        bytes memory cancel = abi.encodeCall(payment.cancelWithdrawal, (session, gateway));
        refused(session, address(payment), cancel, IInferencePayment.InferencePayment__NotExiting.selector);
        refused(gateway, address(payment), cancel, IInferencePayment.InferencePayment__NotExiting.selector);
        fund(attacker, 1);
        vm.prank(attacker);
        payment.deposit(client, session, gateway, 1);
        vm.warp(block.timestamp + payment.WITHDRAWAL_DELAY());
        uint256 before = token.balanceOf(client);
        vm.prank(attacker);
        payment.finalizeWithdrawal(client, session, gateway);
        vm.assertEq(token.balanceOf(client) - before, 1_000 ether + 1, "to the client, whoever asks");
    }

    /// @dev One client can spoil a batch (here: its voucher is not its signer's). It is left out, the rest is signed
    /// again under the next nonce, and the spoilt batch is dead.
    function test_oneBadClaim() public {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](2);
        claims[0] = claimOf(client, CLIENT_KEY, gateway, 100 ether, 100 ether);
        claims[1] = claimOf(client, ATTACKER_KEY, gateway, 100 ether, 100 ether);
        claims[1].signer = session;
        bytes memory spoilt = blindCall(gateway, 1, claims, one(node, 160 ether));
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__BadVoucher.selector,
                1,
                payment.channelId(client, session, gateway),
                session
            )
        );
        this.forward(address(payment), spoilt);
        vm.assertEq(leftIn(client, client, gateway), 1_000 ether, "nothing was drawn");
        vm.assertEq(payment.batchNonce(gateway), 0, "nothing was settled");
        accepted(stranger, address(payment), hundredCall(2));
        vm.assertEq(token.balanceOf(node), 80 ether, "the rest was paid");
        refused(stranger, address(payment), spoilt, IInferencePayment.InferencePayment__BatchNonceUsed.selector);
    }

    // --- gateways ---

    /// @dev The gateway has the voucher, and nobody has to sign with it: so it can't redeem it.
    function test_gatewayAlone() public {
        (
            IInferencePayment.Batch memory batch,
            IInferencePayment.Claim[] memory claims,
            IInferencePayment.Credit[] memory credits
        ) = hundred(1);
        bytes4 tooFew = Quorum.Quorum__TooFewSigners.selector;
        bytes memory data = abi.encodeCall(payment.settleBatch, (batch, claims, credits, 0, ""));
        refused(gateway, address(payment), data, tooFew);
        bytes memory own = signatureOf(ATTACKER_KEY, payment.hashBatch(batch));
        data = abi.encodeCall(payment.settleBatch, (batch, claims, credits, 1, own));
        refused(gateway, address(payment), data, tooFew);
        data = abi.encodeCall(payment.settleBatch, (batch, claims, credits, 7, bytes.concat(own, own, own)));
        refused(gateway, address(payment), data, Quorum.Quorum__BadSignature.selector);
        // Nor can it put itself, or a friend, in the node's place once the quorum has signed.
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        credits[0].payee = accomplice;
        data = abi.encodeCall(payment.settleBatch, (batch, claims, credits, 7, signatures));
        refused(gateway, address(payment), data, IInferencePayment.InferencePayment__CreditsMismatch.selector);
        batch.creditsHash = keccak256(abi.encode(credits));
        data = abi.encodeCall(payment.settleBatch, (batch, claims, credits, 7, signatures));
        refused(gateway, address(payment), data, Quorum.Quorum__BadSignature.selector);
        // Or sign itself, where it is a validator.
        claims[0] = claimOf(client, CLIENT_KEY, validatorAt(0), 1 ether, 1 ether);
        vm.prank(client);
        payment.deposit(client, client, validatorAt(0), 1 ether);
        data = blindCall(validatorAt(0), 1, claims, one(node, 0.8 ether));
        refused(gateway, address(payment), data, Quorum.Quorum__SignerExcluded.selector);
    }

    /// @dev The gateway goes silent. Node and validators have the voucher and the batch: anybody settles, and all are
    /// paid.
    function test_withholdingGateway() public {
        accepted(node, address(payment), hundredCall(1));
        vm.assertEq(token.balanceOf(node), 80 ether, "the node");
        vm.assertEq(token.balanceOf(gateway), 10 ether, "the gateway");
        (uint96 treasury, uint96 pool,) = payment.globals();
        vm.assertEq(treasury, 5 ether, "the treasury");
        vm.assertEq(pool, 5 ether, "the validators");
    }

    function test_voucherOfAnotherChannel() public {
        bytes4 reason = IInferencePayment.InferencePayment__BadVoucher.selector;
        address other = accomplice;
        vm.startPrank(client);
        payment.deposit(client, client, other, 100 ether);
        vm.stopPrank();
        fund(attacker, 100 ether);
        vm.prank(attacker);
        payment.deposit(attacker, client, gateway, 100 ether);
        IInferencePayment.Claim memory claim = claimOf(client, CLIENT_KEY, gateway, 50 ether, 50 ether);
        // Of another gateway:
        refused(other, address(payment), blindCall(other, 1, one(claim), one(node, 40 ether)), reason);
        // of another client with the same signer:
        claim.client = attacker;
        refused(other, address(payment), blindCall(gateway, 1, one(claim), one(node, 40 ether)), reason);
        // of another signer:
        claim = claimOf(client, SESSION_KEY, gateway, 50 ether, 50 ether);
        claim.signer = client;
        refused(other, address(payment), blindCall(gateway, 1, one(claim), one(node, 40 ether)), reason);
        // and of the same channel, for less than is claimed with it.
        claim = claimOf(client, CLIENT_KEY, gateway, 50 ether, 60 ether);
        claim.cumulative = 60 ether;
        refused(other, address(payment), blindCall(gateway, 1, one(claim), one(node, 48 ether)), reason);
    }

    /// @dev Whatever a quorum signs, it draws no more than the client signed, and no more than the client deposited.
    function testFuzz_totalWithinVoucherAndDeposit(uint96 cumulative, uint96 total) public {
        IInferencePayment.Claim memory claim = claimOf(client, CLIENT_KEY, gateway, cumulative, total);
        uint96 compute = uint96((uint256(total) * 80) / 100);
        bytes memory data = blindCall(gateway, 1, one(claim), one(node, compute));
        if (total == 0 || total > cumulative || total > 1_000 ether) {
            refused(gateway, address(payment), data, IInferencePayment.InferencePayment__BadClaim.selector);
        } else {
            accepted(gateway, address(payment), data);
        }
    }

    function test_totalAboveVoucher() public {
        bytes4 reason = IInferencePayment.InferencePayment__BadClaim.selector;
        IInferencePayment.Claim memory claim = claimOf(client, CLIENT_KEY, gateway, 50 ether, 50 ether + 1);
        refused(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 40 ether)), reason);
        claim = claimOf(client, CLIENT_KEY, gateway, type(uint96).max, 1_000 ether + 1);
        refused(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 800 ether)), reason);
        // What the voucher allows beyond what was used stays the client's, for ever lower totals too.
        claim = claimOf(client, CLIENT_KEY, gateway, 1_000 ether, 50 ether);
        accepted(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 40 ether)));
        vm.assertEq(leftIn(client, client, gateway), 950 ether);
        refused(gateway, address(payment), blindCall(gateway, 2, one(claim), one(node, 0)), reason);
        claim.total = 49 ether;
        refused(gateway, address(payment), blindCall(gateway, 2, one(claim), one(node, 0)), reason);
    }

    /// @dev Words whose upper bits are not clean name no other channel and slip past no bound, though a quorum sign
    /// them.
    function test_dirtyWords() public {
        IInferencePayment.Claim[] memory claims;
        IInferencePayment.Credit[] memory credits;
        IInferencePayment.Batch memory batch;
        (batch, claims, credits) = hundred(1);
        bytes memory words = abi.encode(claims);
        for (uint256 field = 0; field < 4; ++field) {
            bytes memory dirty = bytes.concat(words);
            dirty[64 + 32 * field] = 0x01;
            batch.claimsHash = keccak256(dirty);
            bytes memory data = settleCall(batch, claims, credits);
            data[_find(data, bytes32(uint256(uint160(client)))) + 32 * field] = 0x01;
            vm.prank(gateway);
            (bool success, bytes memory answer) = address(payment).call(data);
            vm.assertFalse(success, "the attack succeeded");
            bytes4 mismatch = IInferencePayment.InferencePayment__ClaimsMismatch.selector;
            vm.assertNotEq(bytes32(bytes4(answer)), bytes32(mismatch));
        }
        batch.claimsHash = keccak256(words);
        accepted(gateway, address(payment), settleCall(batch, claims, credits));
    }

    /// @dev One channel twice in a batch is two steps of one counter: nothing is drawn twice.
    function test_oneChannelTwice() public {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](2);
        claims[0] = claimOf(client, CLIENT_KEY, gateway, 100 ether, 100 ether);
        claims[1] = claims[0];
        bytes memory data = blindCall(gateway, 1, claims, one(node, 160 ether));
        refused(gateway, address(payment), data, IInferencePayment.InferencePayment__BadClaim.selector);
        claims[1] = claimOf(client, CLIENT_KEY, gateway, 150 ether, 150 ether);
        accepted(gateway, address(payment), blindCall(gateway, 1, claims, one(node, 120 ether)));
        vm.assertEq(leftIn(client, client, gateway), 850 ether);
    }

    /// @dev A quorum that looks away can't give compute more than 80%, not even by amounts that wrap around.
    function test_creditsAbove80Percent() public {
        bytes4 reason = IInferencePayment.InferencePayment__BadCredits.selector;
        IInferencePayment.Claim[] memory claims = one(claimOf(client, CLIENT_KEY, gateway, 100 ether, 100 ether));
        refused(gateway, address(payment), blindCall(gateway, 1, claims, one(node, 80 ether + 1)), reason);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](2);
        credits[0] = IInferencePayment.Credit(node, 40 ether);
        credits[1] = IInferencePayment.Credit(accomplice, 40 ether + 1);
        refused(gateway, address(payment), blindCall(gateway, 1, claims, credits), reason);
        credits[0] = IInferencePayment.Credit(node, type(uint96).max);
        credits[1] = IInferencePayment.Credit(accomplice, 80 ether + 1);
        refused(gateway, address(payment), blindCall(gateway, 1, claims, credits), reason);
        // Or less than that, but for one unit for each receipt.
        refused(gateway, address(payment), blindCall(gateway, 1, claims, one(node, 80 ether - 2)), reason);
        refused(gateway, address(payment), blindCall(gateway, 1, claims, new IInferencePayment.Credit[](0)), reason);
        accepted(gateway, address(payment), blindCall(gateway, 1, claims, one(node, 80 ether - 1)));
        (uint96 treasury,,) = payment.globals();
        vm.assertEq(treasury, 5 ether + 1, "the dust");
    }

    function testFuzz_credits(uint96 total, uint96 first, uint96 second, uint32 count) public {
        total = 1 + total % 1_000 ether;
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](2);
        credits[0] = IInferencePayment.Credit(node, first % total);
        credits[1] = IInferencePayment.Credit(accomplice, second % total);
        IInferencePayment.Claim[] memory claims = one(claimOf(client, CLIENT_KEY, gateway, total, total));
        IInferencePayment.Batch memory batch = batchOf(gateway, 1, count, claims, credits);
        uint256 most = (uint256(total) * 80) / 100;
        uint256 sum = uint256(credits[0].amount) + credits[1].amount;
        if (sum > most || sum + count < most) {
            bytes4 reason = IInferencePayment.InferencePayment__BadCredits.selector;
            return refused(gateway, address(payment), settleCall(batch, claims, credits), reason);
        }
        accepted(gateway, address(payment), settleCall(batch, claims, credits));
        vm.assertEq(token.balanceOf(node) + token.balanceOf(accomplice), sum);
    }

    function forward(address target, bytes calldata data) external {
        (bool success, bytes memory answer) = target.call(data);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
    }

    /// @dev Where a word begins in a call's data.
    function _find(bytes memory data, bytes32 word) private pure returns (uint256) {
        for (uint256 offset = 4; offset + 32 <= data.length; offset += 32) {
            bytes32 found;
            assembly ("memory-safe") {
                found := mload(add(add(data, 32), offset))
            }
            if (found == word) return offset;
        }
        revert("no such word");
    }
}
