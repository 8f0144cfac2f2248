// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IDisputeManager} from "../../src/interfaces/IDisputeManager.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {ValidatorActions} from "./ValidatorActions.sol";

/// @title What validators do wrong, and what it costs them
abstract contract DisputeActions is ValidatorActions {
    function slashForTwoBatches(uint256 seed) external {
        _seed(seed);
        (bool found, address accused) = _accused();
        if (!found) return;
        (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) = _conflict();
        bytes memory data = abi.encodeCall(
            disputes.reportConflictingBatches,
            (
                first,
                second,
                signatureOf(keyOf[accused], payment.hashBatch(first)),
                signatureOf(keyOf[accused], payment.hashBatch(second))
            )
        );
        bytes32 subject = keccak256(abi.encode(first.gateway, first.nonce));
        _punish(data, IDisputeManager.Misconduct.INVALID_SIGNATURE, accused, subject, 5_000);
    }

    function slashForDowntime(uint256 seed) external {
        _seed(seed);
        _freshen();
        uint32 period = 1 + uint32(_random(epoch));
        if (pinned[period].length == 0) return;
        address accused = _anyOf(pinned[period]);
        bytes32 subject = bytes32(uint256(period));
        (bool possible, IDisputeManager.Endorsement memory verdict) =
            _verdict(IDisputeManager.Misconduct.DOWNTIME, accused, subject);
        if (!possible) return;
        bytes memory data = abi.encodeCall(disputes.reportDowntime, (accused, period, verdict));
        _punish(data, IDisputeManager.Misconduct.DOWNTIME, accused, subject, 1_000);
    }

    function slashForResult(uint256 seed) external {
        _seed(seed);
        _freshen();
        (bool found, address accused) = _accused();
        if (!found) return;
        bytes32 id = bytes32(_random(4));
        IDisputeManager.Decision memory decision = IDisputeManager.Decision(false, "wrong", 1 ether);
        bytes32 digest = payment.hashCompletion(id, decision.outputHash, decision.fee);
        (bool possible, IDisputeManager.Endorsement memory verdict) =
            _verdict(IDisputeManager.Misconduct.INVALID_RESULT, accused, digest);
        if (!possible) return;
        bytes memory signature = signatureOf(keyOf[accused], digest);
        bytes memory data = abi.encodeCall(disputes.reportInvalidCompletion, (id, decision, signature, verdict));
        _punish(data, IDisputeManager.Misconduct.INVALID_RESULT, accused, id, 3_000);
    }

    /// @dev What a node signed. Of few requests, which validators' completions are about as well.
    function slashForNodeResult(uint256 seed) external {
        _seed(seed);
        _freshen();
        (bool bonded, address accused) = _candidateThatIs(IValidatorRegistry.State.BONDED);
        if (!bonded || _oneIn(3)) (bonded, accused) = _accused();
        if (!bonded) return;
        IDisputeManager.NodeReceipt memory receipt = IDisputeManager.NodeReceipt(
            bytes32(_random(4)), "content", "model", "wrong", 1, 1, 1 ether, accused, uint64(_random(9)), 0
        );
        bytes32 digest = disputes.hashNodeReceipt(receipt);
        (bool possible, IDisputeManager.Endorsement memory verdict) =
            _verdict(IDisputeManager.Misconduct.INVALID_RESULT, accused, digest);
        if (!possible) return;
        bytes memory signature = signatureOf(keyOf[accused], digest);
        bytes memory data = abi.encodeCall(disputes.reportInvalidResult, (receipt, signature, verdict));
        _punish(data, IDisputeManager.Misconduct.INVALID_RESULT, accused, receipt.requestId, 3_000);
    }

    /// @dev Two quorums that have as few members in common as possible.
    function slashForCollusion(uint256 seed) external {
        _seed(seed);
        if (!_oneIn(4)) return; // it takes all that whoever is in both has
        address[] memory members = registry.members(epoch);
        uint256 size = quorumSize[epoch];
        if (members.length < size) return;
        uint256 firstBitmap = (1 << size) - 1;
        uint256 secondBitmap = firstBitmap << (members.length - size);
        (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) = _conflict();
        bytes memory data = abi.encodeCall(
            disputes.reportCollusionOnBatches,
            (
                first,
                second,
                _endorsed(epoch, firstBitmap, payment.hashBatch(first)),
                _endorsed(epoch, secondBitmap, payment.hashBatch(second))
            )
        );
        bytes32 subject = keccak256(abi.encode(first.gateway, first.nonce));
        uint256 fresh = 0;
        for (uint256 i = 0; i < members.length; ++i) {
            bytes32 evidence = keccak256(abi.encode(IDisputeManager.Misconduct.COLLUSION, members[i], subject));
            if (((firstBitmap & secondBitmap) >> i) & 1 == 1 && !used[evidence]) ++fresh;
        }
        if (fresh == 0) {
            bytes4 reason = IDisputeManager.DisputeManager__NoCommonSigner.selector;
            return _mustFail(stranger, address(disputes), data, reason);
        }
        _must(stranger, address(disputes), data);
        for (uint256 i = 0; i < members.length; ++i) {
            if (((firstBitmap & secondBitmap) >> i) & 1 == 0) continue;
            bytes32 evidence = keccak256(abi.encode(IDisputeManager.Misconduct.COLLUSION, members[i], subject));
            if (!used[evidence]) _bookSlash(members[i], evidence, 10_000);
        }
        _mustFail(stranger, address(disputes), data, IDisputeManager.DisputeManager__NoCommonSigner.selector);
        _count("slash for collusion");
    }

    /// @dev Nobody but the dispute manager slashes.
    function slashDirectly(uint256 seed) external {
        _seed(seed);
        bytes memory data = abi.encodeCall(registry.slash, (_anyOf(candidates), 10_000, bytes32(seed)));
        (bool success,) = _try(_anyOf(people), address(registry), data);
        vm.assertFalse(success, "8: somebody else slashed");
        _count("direct slash refused");
    }

    // --- inside ---

    /// @dev Anybody who ever registered; mostly somebody with something to lose, often on the way out.
    function _accused() private returns (bool, address accused) {
        if (_oneIn(3)) {
            (bool leaving, address candidate) = _candidateThatIs(IValidatorRegistry.State.EXITING);
            if (leaving) return (true, candidate);
        }
        accused = _anyOf(candidates);
        return (seats[accused].state != IValidatorRegistry.State.NONE, accused);
    }

    /// @dev Of few gateways and nonces, so that evidence also comes twice.
    function _conflict() private returns (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) {
        address to = _anyOf(gateways);
        uint64 nonce = uint64(1 + _random(4));
        first = IInferencePayment.Batch(to, nonce, epoch, 1, bytes32(_random(9)), 0, 0, 0);
        second = IInferencePayment.Batch(to, nonce, epoch, 2, bytes32(_random(9)), 0, 0, 0);
    }

    function _verdict(IDisputeManager.Misconduct misconduct, address accused, bytes32 subject)
        private
        returns (bool, IDisputeManager.Endorsement memory verdict)
    {
        uint256 bitmap = _bitmap(epoch, _without(accused, address(0)));
        if (bitmap == 0) return (false, verdict);
        return (true, _endorsed(epoch, bitmap, disputes.hashVerdict(misconduct, accused, subject, epoch)));
    }

    function _endorsed(uint32 of_, uint256 bitmap, bytes32 digest)
        private
        view
        returns (IDisputeManager.Endorsement memory)
    {
        return IDisputeManager.Endorsement(of_, bitmap, _signAs(of_, bitmap, digest));
    }

    function _punish(
        bytes memory data,
        IDisputeManager.Misconduct misconduct,
        address accused,
        bytes32 subject,
        uint256 tierBps
    ) private {
        bytes32 evidence = keccak256(abi.encode(misconduct, accused, subject));
        bytes4 reason = IValidatorRegistry.ValidatorRegistry__EvidenceUsed.selector;
        if (used[evidence]) {
            _mustFail(stranger, address(disputes), data, reason);
            return _count("evidence refused that was used");
        }
        _must(stranger, address(disputes), data);
        _bookSlash(accused, evidence, tierBps);
        _mustFail(stranger, address(disputes), data, reason);
        _count("slash");
    }

    function _bookSlash(address accused, bytes32 evidence, uint256 tierBps) private {
        Seat storage seat = seats[accused];
        used[evidence] = true;
        uint256 amount = (seat.stake * tierBps) / 10_000;
        if (amount != 0 && seat.state == IValidatorRegistry.State.EXITING) _count("slash unbonding stake");
        seat.stake -= amount;
        slashed += amount;
        _move(address(registry), treasurer, amount);
        bool short = seat.state == IValidatorRegistry.State.ACTIVE && seat.stake < STAKE;
        if (seat.state == IValidatorRegistry.State.BONDED) _count("slash a bond");
        if (short || seat.state == IValidatorRegistry.State.BONDED) seat.state = IValidatorRegistry.State.JAILED;
    }
}
