// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {EpochSnapshot} from "../../src/libraries/EpochSnapshot.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Battlefield} from "./Battlefield.sol";
import {Signatures} from "./Signatures.sol";

/// @title Attacks on quorums: each is tried at every entry that asks for one
contract QuorumsAttack is Battlefield {
    /// @dev What a quorum is asked for: a batch, a request's beginning, its completion, its failure, anything.
    enum Entry {
        BATCH,
        PREPROCESS,
        COMPLETION,
        FAILURE,
        ANYTHING
    }

    IInferencePayment.Request private live;
    /// @dev Epoch that the attacks name where they may; 0: the present one.
    uint32 private named;

    function setUp() public override {
        super.setUp();
        live = requestOf(10 ether);
        initiate(live);
    }

    function test_nobody() public {
        everywhere(0, "", Quorum.Quorum__TooFewSigners.selector);
    }

    function test_tooFew() public {
        for (uint256 i = 0; i < 5; ++i) {
            Entry entry = Entry(i);
            bytes32 digest = digestOf(entry);
            attack(entry, 3, signaturesOf(3, digest), Quorum.Quorum__TooFewSigners.selector);
            // Nor does it help to name three members with two signatures, or two with three.
            attack(entry, 7, signaturesOf(3, digest), Quorum.Quorum__TooFewSigners.selector);
            bytes memory more = bytes.concat(signaturesOf(3, digest), new bytes(65));
            attack(entry, 3, more, Quorum.Quorum__SignaturesMismatch.selector);
            attack(entry, 15, signaturesOf(7, digest), Quorum.Quorum__SignaturesMismatch.selector);
            more = bytes.concat(signaturesOf(3, digest), new bytes(64));
            attack(entry, 7, more, Quorum.Quorum__TooFewSigners.selector);
        }
    }

    function test_oneMemberManyTimes() public {
        for (uint256 i = 0; i < 5; ++i) {
            Entry entry = Entry(i);
            bytes memory own = signatureOf(validatorKey(0), digestOf(entry));
            bytes memory thrice = bytes.concat(own, own, own);
            attack(entry, 7, thrice, Quorum.Quorum__BadSignature.selector);
            attack(entry, 1, thrice, Quorum.Quorum__SignaturesMismatch.selector);
            bytes memory mirrored = bytes.concat(own, Signatures.mirrored(own), own);
            attack(entry, 1, mirrored, Quorum.Quorum__SignaturesMismatch.selector);
        }
    }

    function test_strangers() public {
        for (uint256 i = 0; i < 5; ++i) {
            Entry entry = Entry(i);
            bytes32 digest = digestOf(entry);
            bytes memory alien = signatureOf(ATTACKER_KEY, digest);
            bytes memory two = signaturesOf(3, digest);
            attack(entry, 7, bytes.concat(two, alien), Quorum.Quorum__BadSignature.selector);
            attack(entry, 0x43, bytes.concat(two, alien), Quorum.Quorum__NoSuchMember.selector);
            attack(entry, 3 | (1 << 255), bytes.concat(two, alien), Quorum.Quorum__NoSuchMember.selector);
            // What recovers to nobody is nobody's.
            attack(entry, 7, bytes.concat(two, new bytes(65)), Quorum.Quorum__BadSignature.selector);
        }
    }

    function test_outOfOrder() public {
        for (uint256 i = 0; i < 5; ++i) {
            Entry entry = Entry(i);
            bytes32 digest = digestOf(entry);
            bytes memory turned =
                bytes.concat(signaturesOf(2, digest), signaturesOf(1, digest), signaturesOf(4, digest));
            attack(entry, 7, turned, Quorum.Quorum__BadSignature.selector);
        }
    }

    /// @dev Each signature has one form: s in the lower half, v 27 or 28, 65 bytes.
    function test_malleability() public {
        for (uint256 i = 0; i < 5; ++i) {
            Entry entry = Entry(i);
            bytes32 digest = digestOf(entry);
            bytes memory two = signaturesOf(3, digest);
            bytes memory third = signaturesOf(4, digest);
            attack(entry, 7, bytes.concat(two, Signatures.mirrored(third)), Quorum.Quorum__BadSignature.selector);
            third[64] = bytes1(uint8(third[64]) - 27); // v 0 or 1
            attack(entry, 7, bytes.concat(two, third), Quorum.Quorum__BadSignature.selector);
            third[64] = bytes1(uint8(third[64]) + 37); // v with a chain
            attack(entry, 7, bytes.concat(two, third), Quorum.Quorum__BadSignature.selector);
            // EIP-2098, filled up.
            third = signaturesOf(4, digest);
            if (third[64] == bytes1(uint8(28))) third[32] = third[32] | 0x80;
            third[64] = 0;
            attack(entry, 7, bytes.concat(two, third), Quorum.Quorum__BadSignature.selector);
            bytes memory long = bytes.concat(signaturesOf(7, digest), hex"00");
            attack(entry, 7, long, Quorum.Quorum__SignaturesMismatch.selector);
        }
    }

    /// @dev Vouchers have one form as well.
    function test_malleableVoucher() public {
        IInferencePayment.Claim memory claim = claimOf(client, CLIENT_KEY, gateway, 1 ether, 1 ether);
        uint256 parity = uint256(claim.vs) >> 255;
        uint256 s = (uint256(claim.vs) << 1) >> 1;
        bytes4 reason = IInferencePayment.InferencePayment__BadVoucher.selector;
        // The mirrored s has its top bit set but for few: it can't be written down. What can is another signature.
        claim.vs = bytes32((Signatures.ORDER - s) | ((1 - parity) << 255));
        refused(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 0.8 ether)), reason);
        claim.vs = bytes32(((1 - parity) << 255) | s);
        refused(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 0.8 ether)), reason);
        // Nor does what recovers to nobody prove anything for a signer that is nobody.
        (claim.r, claim.vs) = (0, 0);
        refused(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 0.8 ether)), reason);
        claim.signer = address(0);
        refused(gateway, address(payment), blindCall(gateway, 1, one(claim), one(node, 0.8 ether)), reason);
    }

    /// @dev Gateway and node have an interest; that they are validators too does not help them.
    function test_interestedMembers() public {
        bytes4 reason = Quorum.Quorum__SignerExcluded.selector;
        address insider = validatorAt(2);
        vm.prank(client);
        payment.deposit(client, client, insider, 10 ether);
        IInferencePayment.Claim[] memory claims = one(claimOf(client, CLIENT_KEY, insider, 1 ether, 1 ether));
        refused(insider, address(payment), blindCall(insider, 1, claims, one(node, 0.8 ether)), reason);
        claims = one(claimOf(client, CLIENT_KEY, gateway, 1 ether, 1 ether));
        refused(insider, address(payment), blindCall(gateway, 1, claims, one(insider, 0.8 ether)), reason);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](2);
        credits[0] = IInferencePayment.Credit(node, 0.8 ether);
        credits[1] = IInferencePayment.Credit(insider, 0);
        refused(insider, address(payment), blindCall(gateway, 1, claims, credits), reason);

        IInferencePayment.Request memory request = requestOf(1 ether);
        request.gateway = insider;
        refused(client, address(payment), initiateCall(request), reason);
        request.gateway = gateway;
        request.node = insider;
        refused(client, address(payment), initiateCall(request), reason);
        // Three others can decide about the two of them, but no one of the two.
        request.gateway = validatorAt(4);
        uint256 others = 11; // 0, 1 and 3
        bytes memory signatures = signaturesOf(others, preprocessOf(request));
        vm.prank(client);
        bytes32 id = payment.initiateInferenceRequest(request, others, signatures);
        refused(insider, address(payment), completeCall(request, 1 ether), reason);
        refused(insider, address(payment), failCall(request), reason);
        signatures = signaturesOf(19, payment.hashCompletion(id, "output", 1 ether));
        bytes memory data =
            abi.encodeCall(payment.completeInferenceRequest, (request, "output", 1 ether, 19, signatures));
        refused(insider, address(payment), data, reason);
        signatures = signaturesOf(others, payment.hashCompletion(id, "output", 1 ether));
        payment.completeInferenceRequest(request, "output", 1 ether, others, signatures);
    }

    /// @dev The members of an epoch sign nothing new once its time is over: whoever left by then can't be slashed
    /// later.
    function test_staleEpoch() public {
        uint256 until = registry.validUntil(1);
        nextEpoch();
        named = 1;
        vm.warp(until + 1);
        bytes4 stale = Quorum.Quorum__EpochStale.selector;
        attack(Entry.BATCH, 7, signaturesOf(7, digestOf(Entry.BATCH)), stale);
        attack(Entry.PREPROCESS, 7, signaturesOf(7, digestOf(Entry.PREPROCESS)), stale);
        vm.warp(until);
        accepted(client, address(payment), callOf(Entry.PREPROCESS, 7, signaturesOf(7, digestOf(Entry.PREPROCESS))));
        accepted(stranger, address(payment), callOf(Entry.BATCH, 7, signaturesOf(7, digestOf(Entry.BATCH))));
    }

    function test_epochsThatThereAreNot() public {
        bytes4 unknown = EpochSnapshot.EpochSnapshot__UnknownEpoch.selector;
        uint32[3] memory epochs = [uint32(2), 77, type(uint32).max];
        for (uint256 i = 0; i < epochs.length; ++i) {
            named = epochs[i];
            attack(Entry.BATCH, 7, signaturesOf(7, digestOf(Entry.BATCH)), unknown);
            attack(Entry.PREPROCESS, 7, signaturesOf(7, digestOf(Entry.PREPROCESS)), unknown);
            attack(Entry.ANYTHING, 7, signaturesOf(7, digestOf(Entry.ANYTHING)), unknown);
        }
        // 0 stands for no epoch: not even the one before the first.
        IInferencePayment.Request memory request = requestOf(1 ether);
        request.epoch = 0;
        refused(client, address(payment), initiateCall(request), unknown);
    }

    /// @dev All validators change while a request runs: those that were asked decide, and the new ones don't.
    function test_validatorsChangeMeanwhile() public {
        uint256[5] memory fresh;
        for (uint256 i = 0; i < 5; ++i) {
            fresh[i] = validatorKey(10 + i);
            registerValidator(fresh[i], STAKE);
            vm.prank(validatorAt(i));
            registry.requestExit();
        }
        vm.warp(START + registry.epochLength());
        live = requestOf(10 ether);
        live.expiry = uint64(block.timestamp + 23 hours);
        initiate(live);
        vm.assertEq(registry.advanceEpoch(), 2);
        vm.warp(block.timestamp + 23 hours);
        bytes32 digest = digestOf(Entry.COMPLETION);
        bytes memory usurpers;
        for (uint256 i = 0; i < 3; ++i) {
            usurpers = bytes.concat(usurpers, signatureOf(fresh[i], digest));
        }
        attack(Entry.COMPLETION, 7, usurpers, Quorum.Quorum__BadSignature.selector);
        // The request names its epoch: it can't be told to be of another.
        IInferencePayment.Request memory other = live;
        other.epoch = 2;
        bytes memory data = abi.encodeCall(payment.completeInferenceRequest, (other, "output", 1 ether, 7, usurpers));
        refused(attacker, address(payment), data, IInferencePayment.InferencePayment__NotInEscrow.selector);
        accepted(attacker, address(payment), callOf(Entry.COMPLETION, 7, signaturesOf(7, digest)));
    }

    /// @dev More validators make a quorum no cheaper: a majority is needed.
    function test_manyValidators() public {
        for (uint256 i = 5; i < 9; ++i) {
            registerValidator(validatorKey(i), STAKE);
        }
        nextEpoch();
        vm.assertEq(registry.quorumSize(2), 5);
        bytes memory four = signaturesOf(15, digestOf(Entry.BATCH));
        attack(Entry.BATCH, 15, four, Quorum.Quorum__TooFewSigners.selector);
        accepted(stranger, address(payment), callOf(Entry.BATCH, 31, signaturesOf(31, digestOf(Entry.BATCH))));
    }

    /// @dev Too few validators are no quorum, though they all sign.
    function test_fewValidators() public {
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(validatorAt(i));
            registry.requestExit();
        }
        nextEpoch();
        address[] memory members = registry.members(2);
        vm.assertEq(members.length, 2);
        bytes32 digest = digestOf(Entry.BATCH);
        bytes memory both;
        for (uint256 i = 0; i < 2; ++i) {
            both = bytes.concat(
                both, signatureOf(members[i] == validatorAt(3) ? validatorKey(3) : validatorKey(4), digest)
            );
        }
        attack(Entry.BATCH, 3, both, Quorum.Quorum__TooFewSigners.selector);
    }

    /// @dev The threshold is pinned with the epoch: lowering it makes what runs no easier to take, raising it strands
    /// nothing.
    function test_thresholdIsPinned() public {
        registry.setThreshold(1);
        attack(Entry.COMPLETION, 3, signaturesOf(3, digestOf(Entry.COMPLETION)), Quorum.Quorum__TooFewSigners.selector);
        registry.setThreshold(5);
        accepted(stranger, address(payment), callOf(Entry.COMPLETION, 7, signaturesOf(7, digestOf(Entry.COMPLETION))));
    }

    // --- inside ---

    function everywhere(uint256 bitmap, bytes memory signatures, bytes4 reason) private {
        for (uint256 i = 0; i < 5; ++i) {
            attack(Entry(i), bitmap, signatures, reason);
        }
    }

    function attack(Entry entry, uint256 bitmap, bytes memory signatures, bytes4 reason) private {
        address target = entry == Entry.ANYTHING ? address(registry) : address(payment);
        address caller = entry == Entry.PREPROCESS ? client : attacker;
        refused(caller, target, callOf(entry, bitmap, signatures), reason);
    }

    function digestOf(Entry entry) private view returns (bytes32) {
        if (entry == Entry.BATCH) {
            (IInferencePayment.Batch memory batch,,) = hundred(1);
            batch.epoch = epoch();
            return payment.hashBatch(batch);
        }
        if (entry == Entry.PREPROCESS) return preprocessOf(next());
        bytes32 id = payment.requestId(live.client, live.nonce);
        if (entry == Entry.COMPLETION) return payment.hashCompletion(id, "output", 1 ether);
        if (entry == Entry.FAILURE) return payment.hashFailure(id);
        return "anything";
    }

    function callOf(Entry entry, uint256 bitmap, bytes memory signatures) private view returns (bytes memory) {
        if (entry == Entry.BATCH) {
            (
                IInferencePayment.Batch memory batch,
                IInferencePayment.Claim[] memory claims,
                IInferencePayment.Credit[] memory credits
            ) = hundred(1);
            batch.epoch = epoch();
            return abi.encodeCall(payment.settleBatch, (batch, claims, credits, bitmap, signatures));
        }
        if (entry == Entry.PREPROCESS) {
            return abi.encodeCall(payment.initiateInferenceRequest, (next(), bitmap, signatures));
        }
        if (entry == Entry.COMPLETION) {
            return abi.encodeCall(payment.completeInferenceRequest, (live, "output", 1 ether, bitmap, signatures));
        }
        if (entry == Entry.FAILURE) return abi.encodeCall(payment.markRequestFailed, (live, bitmap, signatures));
        return abi.encodeCall(registry.verifyQuorum, (bytes32("anything"), epoch(), bitmap, signatures, gateway, node));
    }

    function next() private view returns (IInferencePayment.Request memory request) {
        request = requestOf(1 ether);
        request.epoch = epoch();
    }

    function epoch() private view returns (uint32) {
        return named == 0 ? registry.currentEpoch() : named;
    }
}
