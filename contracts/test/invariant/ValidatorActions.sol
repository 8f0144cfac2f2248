// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {EscrowActions} from "./EscrowActions.sol";

/// @title How validators come, go and are paid
abstract contract ValidatorActions is EscrowActions {
    function register(uint256 seed) external {
        _seed(seed);
        address candidate = _anyOf(candidates);
        if (_seat(candidate) || _mayCome(candidate)) return;
        bytes memory data = abi.encodeCall(registry.registerValidator, (STAKE));
        _mustFail(candidate, address(registry), data, IValidatorRegistry.ValidatorRegistry__WrongState.selector);
    }

    function bond(uint256 seed) external {
        _seed(seed);
        address candidate = candidates[candidates.length - 1 - _random(BONDABLE)];
        Seat storage seat = seats[candidate];
        uint256 amount = _oneIn(4) ? BOND - _amount(BOND) : BOND + _amount(BOND);
        bytes memory data = abi.encodeCall(registry.bond, (amount));
        if (!_mayCome(candidate)) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
            return _mustFail(candidate, address(registry), data, reason);
        }
        if (amount < BOND) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__StakeTooLow.selector;
            return _mustFail(candidate, address(registry), data, reason);
        }
        if (wallet[candidate] < amount) return;
        _must(candidate, address(registry), data);
        (seat.state, seat.stake, seat.isBond) = (IValidatorRegistry.State.BONDED, amount, true);
        _move(candidate, address(registry), amount);
        _count("bond");
    }

    function addStake(uint256 seed) external {
        _seed(seed);
        address candidate = _anyOf(candidates);
        Seat storage seat = seats[candidate];
        if (wallet[candidate] == 0) return;
        uint96 amount = _amount(wallet[candidate] > 1_000 ether ? 1_000 ether : wallet[candidate]);
        bytes memory data = abi.encodeCall(registry.addStake, (amount));
        bool jailed = seat.state == IValidatorRegistry.State.JAILED;
        bool settled = seat.state == IValidatorRegistry.State.ACTIVE || seat.state == IValidatorRegistry.State.BONDED;
        if (!settled && !jailed) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
            return _mustFail(candidate, address(registry), data, reason);
        }
        _must(candidate, address(registry), data);
        seat.stake += amount;
        if (jailed && seat.isBond && seat.stake >= BOND) {
            seat.state = IValidatorRegistry.State.BONDED;
            _count("free a jailed bond");
        } else if (jailed && !seat.isBond && seat.stake >= STAKE) {
            seat.state = IValidatorRegistry.State.ACTIVE;
        }
        _move(candidate, address(registry), amount);
        _count("add stake");
    }

    function requestExit(uint256 seed) external {
        _seed(seed);
        address candidate = _anyOf(candidates);
        Seat storage seat = seats[candidate];
        bytes memory data = abi.encodeCall(registry.requestExit, ());
        if (_mayCome(candidate) || seat.state == IValidatorRegistry.State.EXITING) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
            return _mustFail(candidate, address(registry), data, reason);
        }
        _must(candidate, address(registry), data);
        (seat.state, seat.exitAt) = (IValidatorRegistry.State.EXITING, block.timestamp + registry.unbondingPeriod());
        _count(seat.isBond ? "request exit of a bond" : "request exit");
    }

    function finalizeExit(uint256 seed) external {
        _seed(seed);
        (bool found, address candidate) = _candidateThatIs(IValidatorRegistry.State.EXITING);
        bytes memory data = abi.encodeCall(registry.finalizeExit, ());
        if (!found) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
            return _mustFail(candidate, address(registry), data, reason);
        }
        Seat storage seat = seats[candidate];
        if (block.timestamp < seat.exitAt) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__StillUnbonding.selector;
            _mustFail(candidate, address(registry), data, reason);
            if (!_oneIn(4)) return;
            vm.warp(seat.exitAt);
        }
        _must(candidate, address(registry), data);
        _move(address(registry), candidate, seat.stake);
        (seat.state, seat.stake, seat.exitAt, seat.isBond) = (IValidatorRegistry.State.EXITED, 0, 0, false);
        _count("finalize exit");
    }

    function claimRewards(uint256 seed) external {
        _seed(seed);
        address candidate = candidates[0];
        uint256 start = _random(candidates.length);
        for (uint256 i = 0; i < candidates.length; ++i) {
            candidate = candidates[(start + i) % candidates.length];
            if (seats[candidate].rewards != 0) break;
        }
        bytes memory data = abi.encodeCall(registry.claimRewards, ());
        uint256 rewards = seats[candidate].rewards;
        if (rewards == 0) {
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__NoRewards.selector;
            return _mustFail(candidate, address(registry), data, reason);
        }
        if (refused[candidate]) return;
        _must(candidate, address(registry), data);
        seats[candidate].rewards = 0;
        _move(address(registry), candidate, rewards);
        _count("claim rewards");
    }

    function advanceEpoch(uint256 seed) external {
        _seed(seed);
        if (block.timestamp < epochStart + registry.epochLength()) {
            bytes memory data = abi.encodeCall(registry.advanceEpoch, ());
            bytes4 reason = IValidatorRegistry.ValidatorRegistry__EpochNotOver.selector;
            _mustFail(stranger, address(registry), data, reason);
        }
        _advance();
    }

    function distributePool(uint256 seed) external {
        _seed(seed);
        bytes memory data = abi.encodeCall(payment.distributeValidatorPool, ());
        if (pool == 0) {
            bytes4 reason = IInferencePayment.InferencePayment__ZeroAmount.selector;
            return _mustFail(stranger, address(payment), data, reason);
        }
        _must(_anyOf(people), address(payment), data);
        uint256 amount = pool;
        pool = 0;
        _move(address(payment), address(registry), amount);
        _share(amount);
        _count("distribute pool");
    }

    function distribute(uint256 seed) external {
        _seed(seed);
        address giver = _anyOf(clients);
        if (wallet[giver] == 0) return;
        uint96 amount = _amount(wallet[giver] > 10 ether ? 10 ether : wallet[giver]);
        _must(giver, address(registry), abi.encodeCall(registry.distribute, (amount)));
        _move(giver, address(registry), amount);
        _share(amount);
        _count("distribute a gift");
    }

    /// @dev Any bitmap, any signatures, any threshold: accepted exactly where the model says so.
    function probeQuorum(uint256 seed) external {
        _seed(seed);
        uint32 of_ = 1 + uint32(_random(epoch));
        address[] memory members = registry.members(of_);
        uint256 bitmap = _random(1 << members.length) & _random(1 << (members.length + 1));
        if (!_oneIn(4)) bitmap = _bitmap(of_, new address[](0));
        if (_oneIn(16)) bitmap |= 1 << (members.length + _random(256 - members.length));
        bytes32 digest = keccak256(abi.encode(seed));
        bool sound = bitmap < 1 << members.length;
        address[2] memory excluded =
            [_oneIn(2) ? address(0) : _anyOf(candidates), _oneIn(2) ? node : _anyOf(candidates)];
        uint256 ones = 0;
        bytes memory signatures;
        for (uint256 i = 0; i < 256; ++i) {
            if ((bitmap >> i) & 1 == 0) continue;
            ++ones;
            address signer = i < members.length ? members[i] : stranger;
            if (_oneIn(24)) signer = _anyOf(candidates);
            if (i >= members.length || signer != members[i]) sound = false;
            if (signer == excluded[0] || signer == excluded[1]) sound = false;
            signatures = bytes.concat(signatures, signatureOf(signer == stranger ? 1 : keyOf[signer], digest));
        }
        if (_oneIn(16)) (sound, signatures) = (false, bytes.concat(signatures, hex"00"));
        if (_oneIn(16)) (sound, signatures) = (false, bytes.concat(signatures, signatureOf(1, digest)));
        if (ones < quorumSize[of_]) sound = false;
        (bool accepted, bytes memory answer) = address(registry)
            .call(abi.encodeCall(registry.verifyQuorum, (digest, of_, bitmap, signatures, excluded[0], excluded[1])));
        vm.assertEq(accepted ? uint256(1) : 0, sound ? 1 : 0, "5: the registry and the model disagree about a quorum");
        if (!accepted) return _count("no quorum");
        address[] memory signers = abi.decode(answer, (address[]));
        for (uint256 i = 0; i < signers.length; ++i) {
            vm.assertTrue(_isMember(of_, signers[i]), "5: a signer is no member of the epoch");
            for (uint256 j = 0; j < i; ++j) {
                vm.assertTrue(signers[i] != signers[j], "5: a signer counts twice");
            }
        }
        _count("quorum");
    }

    // --- inside ---

    /// @dev Whether it has nothing at stake, and may register or bond.
    function _mayCome(address candidate) private view returns (bool) {
        IValidatorRegistry.State state = seats[candidate].state;
        return state == IValidatorRegistry.State.NONE || state == IValidatorRegistry.State.EXITED;
    }

    function _candidateThatIs(IValidatorRegistry.State state) internal returns (bool, address) {
        uint256 start = _random(candidates.length);
        for (uint256 i = 0; i < candidates.length; ++i) {
            address candidate = candidates[(start + i) % candidates.length];
            if (seats[candidate].state == state) return (true, candidate);
        }
        return (false, candidates[start]);
    }

    /// @dev Splits among the members of the epoch that are still active.
    function _share(uint256 amount) private {
        uint256 active = 0;
        address[] storage members = pinned[epoch];
        for (uint256 i = 0; i < members.length; ++i) {
            if (seats[members[i]].state == IValidatorRegistry.State.ACTIVE) ++active;
        }
        uint256 pot = carried + amount;
        uint256 share = active == 0 ? 0 : pot / active;
        for (uint256 i = 0; i < members.length; ++i) {
            if (seats[members[i]].state == IValidatorRegistry.State.ACTIVE) seats[members[i]].rewards += share;
        }
        carried = pot - share * active;
    }
}
