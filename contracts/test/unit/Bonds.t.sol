// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {ValidatorRegistry} from "../../src/ValidatorRegistry.sol";
import {Network} from "../Network.sol";

/// @title Stake of accounts that are no validators
contract BondsTest is Network {
    // --- bond ---

    function test_bond() public {
        fund(node, BOND);
        vm.prank(node);
        vm.expectEmit(address(registry));
        emit IValidatorRegistry.Bonded(node, BOND);
        registry.bond(BOND);
        expectAccount(IValidatorRegistry.State.BONDED, BOND, true);
        vm.assertEq(token.balanceOf(address(registry)), VALIDATORS * STAKE + BOND);
        vm.assertEq(token.balanceOf(node), 0);
        // Neither active nor a member, now or later, however much it has at stake.
        add(10 * STAKE);
        nextEpoch();
        expectNoValidator(2);
    }

    function testFuzz_bond(uint96 amount) public {
        uint96 most = 100_000_000 ether;
        amount = amount % most;
        fund(node, amount);
        if (amount < BOND) {
            vm.expectRevert(
                abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__StakeTooLow.selector, amount, BOND)
            );
        }
        vm.prank(node);
        registry.bond(amount);
        vm.assertEq(registry.stakeOf(node), amount < BOND ? 0 : amount);
    }

    function test_revert_bond() public {
        vm.prank(validatorAt(0));
        vm.expectRevert(wrongState(validatorAt(0), IValidatorRegistry.State.ACTIVE));
        registry.bond(BOND);
        bonded(BOND);
        vm.prank(node);
        vm.expectRevert(wrongState(node, IValidatorRegistry.State.BONDED));
        registry.bond(BOND);
        // From a bond, no short way to a validator's seat.
        vm.prank(node);
        vm.expectRevert(wrongState(node, IValidatorRegistry.State.BONDED));
        registry.registerValidator(STAKE);
        slash(1_000);
        vm.prank(node);
        vm.expectRevert(wrongState(node, IValidatorRegistry.State.JAILED));
        registry.registerValidator(STAKE);
        vm.prank(node);
        registry.requestExit();
        vm.prank(node);
        vm.expectRevert(wrongState(node, IValidatorRegistry.State.EXITING));
        registry.bond(BOND);
    }

    function test_revert_bondTokenShortChanges() public {
        vm.mockCall(
            address(token), abi.encodeCall(IERC20.transferFrom, (stranger, address(registry), BOND)), abi.encode(true)
        );
        vm.prank(stranger);
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__TransferMismatch.selector, 0, BOND)
        );
        registry.bond(BOND);
    }

    function test_revert_constructor() public {
        IValidatorRegistry.Config memory config = registryConfig();
        config.minBond = config.minStake + 1;
        vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__BadConfig.selector, config));
        new ValidatorRegistry(token, address(this), treasurer, config);
        config.minBond = 0;
        vm.expectRevert(abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__BadConfig.selector, config));
        new ValidatorRegistry(token, address(this), treasurer, config);
    }

    // --- slash, addStake ---

    /// @dev Jailed however much is left; freed by the first unit that is added, where that is enough.
    function testFuzz_slash(uint96 extra, uint8 tier, uint96 added) public {
        uint256 bps = [1_000, 3_000, 5_000, 10_000][tier % 4];
        uint256 stake = BOND + extra % (1_000_000 ether);
        added = uint96(1 + added % (2 * BOND));
        bonded(stake);
        uint256 left = stake - stake * bps / 10_000;
        vm.expectEmit(address(registry));
        emit IValidatorRegistry.ValidatorJailed(node, left);
        slash(bps);
        expectAccount(IValidatorRegistry.State.JAILED, left, true);
        vm.assertEq(token.balanceOf(treasurer), stake - left);
        (,,, int64 reputation,) = registry.validators(node);
        vm.assertEq(reputation, -20);
        bool enough = left + added >= BOND;
        add(added);
        IValidatorRegistry.State expected = enough ? IValidatorRegistry.State.BONDED : IValidatorRegistry.State.JAILED;
        expectAccount(expected, left + added, true);
        vm.assertEq(registry.activeValidators().length, VALIDATORS);
    }

    /// @dev With a validator's stake and more, what was a bond stays one.
    function test_aJailedBondBecomesNoValidator() public {
        bonded(BOND);
        slash(3_000);
        fund(node, 10 * STAKE);
        vm.prank(node);
        vm.expectEmit(address(registry));
        emit IValidatorRegistry.ValidatorFreed(node, BOND * 7 / 10 + 10 * STAKE);
        registry.addStake(10 * STAKE);
        expectAccount(IValidatorRegistry.State.BONDED, BOND * 7 / 10 + 10 * STAKE, true);
        nextEpoch();
        expectNoValidator(2);
    }

    /// @dev And what was a validator stays one: a bond's minimum does not free it.
    function test_aJailedValidatorBecomesNoBond() public {
        vm.prank(address(disputes));
        registry.slash(validatorAt(0), 10_000, "evidence");
        fund(validatorAt(0), STAKE);
        vm.startPrank(validatorAt(0));
        registry.addStake(BOND);
        (IValidatorRegistry.State state,,,,) = registry.validators(validatorAt(0));
        vm.assertEq(uint256(state), uint256(IValidatorRegistry.State.JAILED));
        registry.addStake(STAKE - BOND);
        vm.stopPrank();
        (state,,,,) = registry.validators(validatorAt(0));
        vm.assertEq(uint256(state), uint256(IValidatorRegistry.State.ACTIVE));
        vm.assertFalse(registry.isBond(validatorAt(0)));
    }

    function test_slashedAgainInJail() public {
        bonded(BOND);
        slash(5_000);
        slash(3_000);
        expectAccount(IValidatorRegistry.State.JAILED, BOND * 35 / 100, true);
    }

    // --- exit ---

    function test_exit() public {
        bonded(BOND);
        uint256 active = registry.activeValidators().length;
        vm.prank(node);
        registry.requestExit();
        expectAccount(IValidatorRegistry.State.EXITING, BOND, true);
        vm.assertEq(registry.activeValidators().length, active);
        (,, uint64 exitAt,,) = registry.validators(node);
        vm.assertEq(exitAt, START + 14 days);
        vm.warp(exitAt - 1);
        vm.prank(node);
        vm.expectRevert(
            abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__StillUnbonding.selector, node, exitAt)
        );
        registry.finalizeExit();
        // Slashed on the last day all the same.
        slash(3_000);
        expectAccount(IValidatorRegistry.State.EXITING, BOND * 7 / 10, true);
        vm.warp(exitAt);
        vm.prank(node);
        registry.finalizeExit();
        expectAccount(IValidatorRegistry.State.EXITED, 0, false);
        vm.assertEq(token.balanceOf(node), BOND * 7 / 10);
    }

    function test_exitOfTheJailed() public {
        bonded(BOND);
        slash(1_000);
        vm.prank(node);
        registry.requestExit();
        expectAccount(IValidatorRegistry.State.EXITING, BOND * 9 / 10, true);
        vm.warp(START + 14 days);
        vm.prank(node);
        registry.finalizeExit();
        vm.assertEq(token.balanceOf(node), BOND * 9 / 10);
    }

    /// @dev Who left comes back as what it likes: a bond as a validator, a validator as a bond.
    function test_comingBack() public {
        bonded(BOND);
        depart(node);
        fund(node, STAKE);
        vm.prank(node);
        registry.registerValidator(STAKE);
        expectAccount(IValidatorRegistry.State.ACTIVE, STAKE, false);
        slash(1_000);
        add(STAKE / 10);
        expectAccount(IValidatorRegistry.State.ACTIVE, STAKE, false);
        depart(node);
        vm.prank(node);
        registry.bond(BOND);
        expectAccount(IValidatorRegistry.State.BONDED, BOND, true);
        vm.assertEq(registry.activeValidators().length, VALIDATORS);
    }

    // --- rewards ---

    /// @dev A member of the epoch that left and bonded gets no share any more, and what it had it can still claim.
    function test_distribute() public {
        address mover = validatorAt(0);
        token.approve(address(registry), 100 ether);
        registry.distribute(5 ether);
        depart(mover);
        vm.startPrank(mover);
        token.approve(address(registry), BOND);
        registry.bond(BOND);
        registry.claimRewards();
        vm.stopPrank();
        registry.distribute(4 ether);
        (,,,, uint96 rewards) = registry.validators(mover);
        vm.assertEq(rewards, 0);
        (,,,, rewards) = registry.validators(validatorAt(1));
        vm.assertEq(rewards, 2 ether);
    }

    // --- inside ---

    function bonded(uint256 amount) private {
        fund(node, amount);
        vm.prank(node);
        registry.bond(amount);
    }

    function add(uint256 amount) private {
        fund(node, amount);
        vm.prank(node);
        registry.addStake(amount);
    }

    function slash(uint256 bps) private {
        bytes32 evidence = keccak256(abi.encode(node, bps));
        vm.prank(address(disputes));
        registry.slash(node, bps, evidence);
    }

    function depart(address account) private {
        vm.prank(account);
        registry.requestExit();
        vm.warp(block.timestamp + 14 days);
        vm.prank(account);
        registry.finalizeExit();
    }

    function expectAccount(IValidatorRegistry.State expected, uint256 stake, bool isBond) private view {
        (IValidatorRegistry.State state, uint96 actual,,,) = registry.validators(node);
        vm.assertEq(uint256(state), uint256(expected));
        vm.assertEq(actual, stake);
        vm.assertEq(registry.stakeOf(node), stake);
        vm.assertTrue(registry.isBond(node) == isBond);
    }

    function expectNoValidator(uint32 epoch) private view {
        address[] memory active = registry.activeValidators();
        address[] memory members = registry.members(epoch);
        vm.assertEq(active.length, VALIDATORS);
        vm.assertEq(members.length, VALIDATORS);
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            vm.assertTrue(active[i] != node && members[i] != node);
        }
    }

    function wrongState(address account, IValidatorRegistry.State state) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IValidatorRegistry.ValidatorRegistry__WrongState.selector, account, state);
    }
}
