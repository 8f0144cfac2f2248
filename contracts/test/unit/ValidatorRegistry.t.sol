// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {EpochSnapshot} from "../../src/libraries/EpochSnapshot.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {ValidatorRegistry} from "../../src/ValidatorRegistry.sol";
import {Network} from "../Network.sol";

contract ValidatorRegistryTest is Network {
    bytes32 private constant DIGEST = keccak256("digest");
    uint256 private constant NEWCOMER = 0xBA11D0 + 5;

    // --- constructor ---

    function test_constructor() public view {
        vm.assertEq(address(registry.token()), address(token));
        vm.assertEq(registry.treasury(), treasurer);
        vm.assertEq(registry.minStake(), STAKE);
        vm.assertEq(registry.minBond(), BOND);
        vm.assertEq(registry.epochLength(), 1 days);
        vm.assertEq(registry.snapshotLifetime(), 2 days);
        vm.assertEq(registry.disputeWindow(), 7 days);
        vm.assertEq(registry.unbondingPeriod(), 14 days);
        vm.assertEq(registry.threshold(), 3);
    }

    function testFuzz_constructor(IValidatorRegistry.Config memory config) public {
        bool sound = config.minBond > 0 && config.minBond <= config.minStake
            && config.snapshotLifetime >= config.epochLength
            && config.unbondingPeriod >= uint256(config.snapshotLifetime) + config.disputeWindow
            && config.unbondingPeriod <= type(uint32).max;
        if (!sound) {
            vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__BadConfig.selector, config));
        } else if (config.threshold == 0 || config.threshold > 256) {
            vm.expectRevert(
                abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__BadThreshold.selector, config.threshold)
            );
        }
        new ValidatorRegistry(token, address(this), treasurer, config);
    }

    function test_revert_constructor() public {
        bytes memory zero = abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__ZeroAddress.selector);
        vm.expectRevert(zero);
        new ValidatorRegistry(IERC20(address(0)), address(this), treasurer, registryConfig());
        vm.expectRevert(zero);
        new ValidatorRegistry(token, address(0), treasurer, registryConfig());
        vm.expectRevert(zero);
        new ValidatorRegistry(token, address(this), address(0), registryConfig());
        IValidatorRegistry.Config memory config = registryConfig();
        config.unbondingPeriod = 9 days - 1;
        vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__BadConfig.selector, config));
        new ValidatorRegistry(token, address(this), treasurer, config);
    }

    // --- registerValidator ---

    function test_registerValidator() public {
        address validator = registerValidator(NEWCOMER, STAKE + 1);
        expectValidator(validator, IValidatorRegistry.State.ACTIVE, STAKE + 1);
        vm.assertEq(token.balanceOf(address(registry)), 6 * STAKE + 1);
        vm.assertEq(registry.activeValidators().length, 6);
        vm.assertEq(registry.members(1).length, 5); // a member from the next epoch on
        nextEpoch();
        vm.assertEq(registry.members(2)[5], validator);
    }

    function testFuzz_registerValidator(uint96 stake) public {
        stake = uint96(STAKE + stake % (100_000_000 ether));
        address validator = registerValidator(NEWCOMER, stake);
        vm.assertEq(registry.stakeOf(validator), stake);
    }

    function test_revert_registerValidator() public {
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__StakeTooLow.selector, STAKE - 1, STAKE)
        );
        registry.registerValidator(STAKE - 1);
        vm.prank(validatorAt(0));
        vm.expectRevert(wrongState(validatorAt(0), IValidatorRegistry.State.ACTIVE));
        registry.registerValidator(STAKE);
    }

    function test_revert_registerValidatorFull() public {
        for (uint256 i = VALIDATORS; i < 256; ++i) {
            registerValidator(validatorKey(i), STAKE);
        }
        fund(stranger, STAKE);
        vm.prank(stranger);
        vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__Full.selector, 256));
        registry.registerValidator(STAKE);
        // All 256 fit into an epoch, the last bit of a bitmap too.
        nextEpoch();
        vm.assertEq(registry.members(2).length, 256);
        vm.assertEq(registry.quorumSize(2), 129);
        uint256 bitmap = type(uint256).max << 127;
        address[] memory signers =
            registry.verifyQuorum(DIGEST, 2, bitmap, signaturesOf(bitmap, DIGEST), address(0), address(0));
        vm.assertEq(signers[128], validatorAt(255));
    }

    function test_revert_registerValidatorTokenShortChanges() public {
        vm.mockCall(
            address(token), abi.encodeCall(IERC20.transferFrom, (stranger, address(registry), STAKE)), abi.encode(true)
        );
        vm.prank(stranger);
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__TransferMismatch.selector, 0, STAKE)
        );
        registry.registerValidator(STAKE);
    }

    // --- addStake ---

    function test_addStake() public {
        fund(validatorAt(0), 5 ether);
        vm.prank(validatorAt(0));
        registry.addStake(5 ether);
        expectValidator(validatorAt(0), IValidatorRegistry.State.ACTIVE, STAKE + 5 ether);
    }

    function testFuzz_addStakeFreesTheJailed(uint96 amount) public {
        amount = uint96(1 + amount % (2 * STAKE));
        slash(validatorAt(0), 5_000);
        fund(validatorAt(0), amount);
        vm.prank(validatorAt(0));
        registry.addStake(amount);
        bool freed = amount >= STAKE / 2;
        expectValidator(
            validatorAt(0),
            freed ? IValidatorRegistry.State.ACTIVE : IValidatorRegistry.State.JAILED,
            STAKE / 2 + amount
        );
        vm.assertEq(registry.activeValidators().length, freed ? 5 : 4);
    }

    function test_revert_addStake() public {
        vm.prank(validatorAt(0));
        vm.expectRevert(IValidatorRegistry.ValidatorRegistry__ZeroAmount.selector);
        registry.addStake(0);
        vm.prank(stranger);
        vm.expectRevert(wrongState(stranger, IValidatorRegistry.State.NONE));
        registry.addStake(1);
        vm.prank(validatorAt(1));
        registry.requestExit();
        vm.prank(validatorAt(1));
        vm.expectRevert(wrongState(validatorAt(1), IValidatorRegistry.State.EXITING));
        registry.addStake(1);
    }

    // --- requestExit, finalizeExit ---

    function test_exit() public {
        address validator = validatorAt(1);
        vm.prank(validator);
        registry.requestExit();
        expectValidator(validator, IValidatorRegistry.State.EXITING, STAKE);
        (,, uint64 exitAt,,) = registry.validators(validator);
        vm.assertEq(exitAt, START + 14 days);
        nextEpoch();
        address[] memory members = registry.members(2);
        vm.assertEq(members.length, 4);
        vm.assertEq(members[1], validatorAt(4)); // the last took the place
        vm.warp(exitAt);
        vm.prank(validator);
        registry.finalizeExit();
        expectValidator(validator, IValidatorRegistry.State.EXITED, 0);
        vm.assertEq(token.balanceOf(validator), STAKE);
        vm.startPrank(validator);
        token.approve(address(registry), STAKE);
        registry.registerValidator(STAKE);
        vm.stopPrank();
        expectValidator(validator, IValidatorRegistry.State.ACTIVE, STAKE);
    }

    function testFuzz_exit(uint256 order) public {
        for (uint256 left = VALIDATORS; left > 0; --left) {
            address validator = registry.activeValidators()[order % left];
            order = uint256(keccak256(abi.encode(order)));
            vm.prank(validator);
            registry.requestExit();
            address[] memory active = registry.activeValidators();
            vm.assertEq(active.length, left - 1);
            for (uint256 i = 0; i < active.length; ++i) {
                vm.assertTrue(active[i] != validator);
            }
        }
    }

    function test_exitOfTheJailed() public {
        slash(validatorAt(0), 3_000);
        vm.prank(validatorAt(0));
        registry.requestExit();
        expectValidator(validatorAt(0), IValidatorRegistry.State.EXITING, STAKE * 7 / 10);
    }

    function test_revert_exit() public {
        vm.prank(stranger);
        vm.expectRevert(wrongState(stranger, IValidatorRegistry.State.NONE));
        registry.requestExit();
        vm.prank(validatorAt(0));
        vm.expectRevert(wrongState(validatorAt(0), IValidatorRegistry.State.ACTIVE));
        registry.finalizeExit();
        vm.prank(validatorAt(0));
        registry.requestExit();
        vm.warp(START + 14 days - 1);
        vm.prank(validatorAt(0));
        vm.expectRevert(
            abi.encodeWithSelector(
                IValidatorRegistry.ValidatorRegistry__StillUnbonding.selector, validatorAt(0), START + 14 days
            )
        );
        registry.finalizeExit();
    }

    // --- advanceEpoch and what is pinned ---

    function test_advanceEpoch() public {
        vm.assertEq(registry.currentEpoch(), 1);
        vm.assertEq(registry.epochStartedAt(), START);
        vm.assertEq(registry.validUntil(1), START + 2 days);
        vm.warp(START + 1 days);
        vm.expectEmit(address(registry));
        emit IValidatorRegistry.EpochAdvanced(2, 5, 3, START + 3 days);
        vm.assertEq(registry.advanceEpoch(), 2);
        vm.assertEq(registry.members(1), registry.members(2));
    }

    function testFuzz_advanceEpoch(uint8 leavers, uint16 threshold) public {
        threshold = 1 + threshold % 256;
        registry.setThreshold(threshold);
        uint256 left = VALIDATORS - leavers % (VALIDATORS + 1);
        for (uint256 i = left; i < VALIDATORS; ++i) {
            vm.prank(validatorAt(i));
            registry.requestExit();
        }
        nextEpoch();
        vm.assertEq(registry.members(2).length, left);
        uint256 majority = left / 2 + 1;
        vm.assertEq(registry.quorumSize(2), threshold > majority ? threshold : majority);
        vm.assertEq(registry.quorumSize(1), 3); // as pinned
    }

    function test_revert_advanceEpoch() public {
        vm.warp(START + 1 days - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__EpochNotOver.selector, 1, START + 1 days)
        );
        registry.advanceEpoch();
    }

    function test_revert_unknownEpoch() public {
        for (uint32 epoch = 0; epoch < 3; epoch += 2) {
            bytes memory reason = abi.encodeWithSelector(EpochSnapshot.EpochSnapshot__UnknownEpoch.selector, epoch);
            vm.expectRevert(reason);
            registry.members(epoch);
            vm.expectRevert(reason);
            registry.validUntil(epoch);
            vm.expectRevert(reason);
            registry.quorumSize(epoch);
            vm.expectRevert(reason);
            registry.verifyQuorum(DIGEST, epoch, 7, hex"", address(0), address(0));
        }
    }

    // --- setThreshold ---

    function test_setThreshold() public {
        registry.setThreshold(4);
        vm.assertEq(registry.threshold(), 4);
        vm.assertEq(registry.quorumSize(1), 3);
        nextEpoch();
        vm.assertEq(registry.quorumSize(2), 4);
    }

    function testFuzz_revert_setThreshold(uint16 threshold) public {
        if (threshold != 0) threshold = uint16(257 + threshold % (65_535 - 257));
        vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__BadThreshold.selector, threshold));
        registry.setThreshold(threshold);
    }

    function test_revert_setThresholdByStranger() public {
        vm.prank(stranger);
        vm.expectRevert(unauthorized(stranger, bytes32(0)));
        registry.setThreshold(4);
    }

    // --- verifyQuorum ---

    function test_verifyQuorum() public view {
        address[] memory signers =
            registry.verifyQuorum(DIGEST, 1, 0x15, signaturesOf(0x15, DIGEST), validatorAt(1), validatorAt(3));
        vm.assertEq(signers.length, 3);
        vm.assertEq(signers[0], validatorAt(0));
        vm.assertEq(signers[1], validatorAt(2));
        vm.assertEq(signers[2], validatorAt(4));
    }

    /// @dev Against a plain reading of the rules.
    function testFuzz_verifyQuorum(uint8 bitmap, uint8 signed, bytes32 digest, uint8 excluded) public view {
        bytes memory signatures = signaturesOf(signed & 0x3f, digest);
        address outcast = validatorAt(excluded % 8);
        bool enough = bits(signed & 0x3f) >= 3;
        bool allowed = excluded % 8 > 4 || (bitmap >> (excluded % 8)) & 1 == 0;
        bool accepted = enough && bitmap == signed && bitmap < 32 && allowed;
        (bool success,) = address(registry)
            .staticcall(
                abi.encodeCall(IValidatorRegistry.verifyQuorum, (digest, 1, bitmap, signatures, outcast, address(0)))
            );
        vm.assertEq(success, accepted);
    }

    function test_revert_verifyQuorum() public {
        bytes memory three = signaturesOf(7, DIGEST);
        bytes memory two = signaturesOf(3, DIGEST);
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__TooFewSigners.selector, 2, 3));
        registry.verifyQuorum(DIGEST, 1, 3, two, address(0), address(0));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__SignaturesMismatch.selector, 3, 195));
        registry.verifyQuorum(DIGEST, 1, 3, three, address(0), address(0));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__SignaturesMismatch.selector, 15, 195));
        registry.verifyQuorum(DIGEST, 1, 15, three, address(0), address(0));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__SignaturesMismatch.selector, 7, 196));
        registry.verifyQuorum(DIGEST, 1, 7, bytes.concat(three, hex"00"), address(0), address(0));
        bytes memory withStranger = bytes.concat(two, signatureOf(NEWCOMER, DIGEST));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__NoSuchMember.selector, 5, 5));
        registry.verifyQuorum(DIGEST, 1, 35, withStranger, address(0), address(0));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__BadSignature.selector, 2, validatorAt(2), DIGEST));
        registry.verifyQuorum(DIGEST, 1, 7, withStranger, address(0), address(0));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, validatorAt(1)));
        registry.verifyQuorum(DIGEST, 1, 7, three, validatorAt(1), address(0));
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, validatorAt(2)));
        registry.verifyQuorum(DIGEST, 1, 7, three, address(0), validatorAt(2));
    }

    function test_revert_verifyQuorumMalleable() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(validatorKey(2), DIGEST);
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        bytes memory mirrored = abi.encodePacked(r, order - uint256(s), v == 27 ? uint8(28) : uint8(27));
        bytes memory two = signaturesOf(3, DIGEST);
        bytes memory reason = abi.encodeWithSelector(Quorum.Quorum__BadSignature.selector, 2, validatorAt(2), DIGEST);
        vm.expectRevert(reason);
        registry.verifyQuorum(DIGEST, 1, 7, bytes.concat(two, mirrored), address(0), address(0));
        bytes memory parity = abi.encodePacked(r, s, v - 27);
        vm.expectRevert(reason);
        registry.verifyQuorum(DIGEST, 1, 7, bytes.concat(two, parity), address(0), address(0));
        vm.expectRevert(reason);
        registry.verifyQuorum(DIGEST, 1, 7, bytes.concat(two, new bytes(65)), address(0), address(0));
    }

    // --- slash ---

    function test_slash() public {
        vm.expectEmit(address(registry));
        emit IValidatorRegistry.ValidatorSlashed(validatorAt(0), 3_000, 3_000 ether, "evidence");
        vm.assertEq(slash(validatorAt(0), 3_000, "evidence"), 3_000 ether);
        expectValidator(validatorAt(0), IValidatorRegistry.State.JAILED, 7_000 ether);
        (,,, int64 reputation,) = registry.validators(validatorAt(0));
        vm.assertEq(reputation, -20);
        vm.assertEq(token.balanceOf(treasurer), 3_000 ether);
        vm.assertTrue(registry.evidenceUsed("evidence"));
        nextEpoch();
        vm.assertEq(registry.members(2).length, 4);
    }

    function test_slashReachesUnbondingStakeAndNothingAfterIt() public {
        vm.prank(validatorAt(0));
        registry.requestExit();
        vm.warp(START + 14 days - 1);
        vm.assertEq(slash(validatorAt(0), 10_000, "1"), STAKE);
        expectValidator(validatorAt(0), IValidatorRegistry.State.EXITING, 0);
        vm.warp(START + 14 days);
        vm.prank(validatorAt(0));
        registry.finalizeExit();
        vm.assertEq(slash(validatorAt(0), 10_000, "2"), 0);
    }

    function testFuzz_slash(uint96 extra, uint8 tier) public {
        uint256 bps = [1_000, 3_000, 5_000, 10_000][tier % 4];
        uint256 stake = STAKE + extra % (1_000_000 ether);
        address validator = registerValidator(NEWCOMER, stake);
        uint256 amount = slash(validator, bps, "evidence");
        vm.assertEq(amount, stake * bps / 10_000);
        expectValidator(
            validator,
            stake - amount >= STAKE ? IValidatorRegistry.State.ACTIVE : IValidatorRegistry.State.JAILED,
            stake - amount
        );
    }

    function test_revert_slash() public {
        vm.startPrank(address(disputes));
        vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__UnknownTier.selector, 2_000));
        registry.slash(validatorAt(0), 2_000, "evidence");
        registry.slash(validatorAt(0), 1_000, "evidence");
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__EvidenceUsed.selector, bytes32("evidence"))
        );
        registry.slash(validatorAt(0), 1_000, "evidence");
        vm.expectRevert(wrongState(stranger, IValidatorRegistry.State.NONE));
        registry.slash(stranger, 1_000, "other");
        vm.stopPrank();
        bytes32 role = registry.DISPUTES_ROLE();
        vm.expectRevert(unauthorized(address(this), role));
        registry.slash(validatorAt(0), 1_000, "another");
    }

    // --- adjustReputation ---

    function testFuzz_adjustReputation(int32 first, int32 second) public {
        vm.startPrank(address(disputes));
        registry.adjustReputation(validatorAt(0), first);
        registry.adjustReputation(validatorAt(0), second);
        vm.stopPrank();
        (,,, int64 reputation,) = registry.validators(validatorAt(0));
        vm.assertEq(reputation, int256(first) + int256(second));
    }

    function test_revert_adjustReputation() public {
        vm.prank(address(disputes));
        vm.expectRevert(wrongState(stranger, IValidatorRegistry.State.NONE));
        registry.adjustReputation(stranger, 1);
        bytes32 role = registry.DISPUTES_ROLE();
        vm.expectRevert(unauthorized(address(this), role));
        registry.adjustReputation(validatorAt(0), 1);
    }

    // --- distribute, claimRewards ---

    function test_distribute() public {
        token.approve(address(registry), 100 ether);
        vm.prank(validatorAt(4));
        registry.requestExit(); // still a member, not active
        vm.expectEmit(address(registry));
        emit IValidatorRegistry.RewardsDistributed(1, 25, 4, 3);
        registry.distribute(103);
        vm.assertEq(registry.carriedRewards(), 3);
        registry.distribute(1); // 4 with what was carried
        vm.assertEq(registry.carriedRewards(), 0);
        vm.prank(validatorAt(0));
        registry.claimRewards();
        vm.assertEq(token.balanceOf(validatorAt(0)), 26);
        (,,,, uint96 rewards) = registry.validators(validatorAt(0));
        vm.assertEq(rewards, 0);
    }

    function test_distributeWithNobodyThere() public {
        token.approve(address(registry), 100 ether);
        ValidatorRegistry fresh = new ValidatorRegistry(token, address(this), treasurer, registryConfig());
        token.approve(address(fresh), 7);
        fresh.distribute(7); // before the first epoch
        vm.assertEq(fresh.carriedRewards(), 7);
    }

    function testFuzz_distribute(uint96 amount, uint8 jailed) public {
        amount = uint96(amount % 100_000_000 ether);
        uint256 left = VALIDATORS - jailed % (VALIDATORS + 1);
        for (uint256 i = left; i < VALIDATORS; ++i) {
            slash(validatorAt(i), 1_000, bytes32(i + 1));
        }
        token.approve(address(registry), amount);
        registry.distribute(amount);
        uint256 sum = registry.carriedRewards();
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            (,,,, uint96 rewards) = registry.validators(validatorAt(i));
            vm.assertEq(rewards, i < left ? amount / left : 0);
            sum += rewards;
        }
        vm.assertEq(sum, amount);
    }

    function test_revert_claimRewards() public {
        vm.prank(validatorAt(0));
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__NoRewards.selector, validatorAt(0))
        );
        registry.claimRewards();
    }

    // --- inside ---

    function slash(address validator, uint256 bps) private {
        slash(validator, bps, keccak256(abi.encode(validator, bps)));
    }

    function slash(address validator, uint256 bps, bytes32 evidence) private returns (uint256) {
        vm.prank(address(disputes));
        return registry.slash(validator, bps, evidence);
    }

    function expectValidator(address validator, IValidatorRegistry.State expected, uint256 expectedStake) private view {
        (IValidatorRegistry.State state, uint96 stake,,,) = registry.validators(validator);
        vm.assertEq(uint256(state), uint256(expected));
        vm.assertEq(stake, expectedStake);
        vm.assertEq(registry.stakeOf(validator), expectedStake);
    }

    function wrongState(address validator, IValidatorRegistry.State state) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__WrongState.selector, validator, state);
    }

    function unauthorized(address account, bytes32 role) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, account, role);
    }

    function bits(uint256 value) private pure returns (uint256 count) {
        for (; value != 0; value >>= 1) {
            count += value & 1;
        }
    }
}
