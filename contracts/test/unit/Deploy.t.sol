// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {Deploy} from "../../script/Deploy.s.sol";
import {VM, Vm} from "../../script/Vm.sol";
import {InferencePayment} from "../../src/InferencePayment.sol";
import {NCNToken} from "../../src/NCNToken.sol";
import {ValidatorRegistry} from "../../src/ValidatorRegistry.sol";

/// @notice The script's parts; that it broadcasts, resumes and writes its file is tested against a node
/// (`script/deploy.test.mjs`).
contract DeployTest {
    Vm private constant vm = VM;

    Deploy private script;
    Deploy.Parameters private parameters;

    function setUp() public {
        script = new Deploy();
        // The deterministic deployment proxy, as on a chain.
        vm.etch(
            0x4e59b44847b379578588920cA78FbF26c0B4956C,
            hex"7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe03601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
        );
        vm.setEnv("PRIVATE_KEY", "0xA11CE");
        parameters = script.parametersFromEnvironment();
        parameters.deployer = address(script); // whose calls they are here
    }

    function test_deploy() public {
        Deploy.Addresses memory addresses = script.deploy(parameters);
        script.verify(parameters, addresses);
        TimelockController timelock = TimelockController(payable(addresses.timelock));
        vm.assertEq(timelock.getMinDelay(), 2 days);
        vm.assertTrue(timelock.hasRole(timelock.PROPOSER_ROLE(), vm.addr(0xA11CE)));
        vm.assertFalse(timelock.hasRole(timelock.DEFAULT_ADMIN_ROLE(), address(script)));
        vm.assertEq(NCNToken(addresses.token).balanceOf(vm.addr(0xA11CE)), 1_000_000_000 ether);
        vm.assertEq(ValidatorRegistry(addresses.registry).minStake(), 10_000 ether);
        vm.assertEq(ValidatorRegistry(addresses.registry).minBond(), 1_000 ether);
        vm.assertEq(ValidatorRegistry(addresses.registry).treasury(), addresses.timelock);
        vm.assertEq(InferencePayment(addresses.payment).MAX_REQUEST_TIME(), 1 days);
    }

    function test_deployTwiceDoesNothingTwice() public {
        Deploy.Addresses memory first = script.deploy(parameters);
        vm.recordLogs();
        Deploy.Addresses memory second = script.deploy(parameters);
        vm.assertEq(vm.getRecordedLogs().length, 0); // each part emits when it is made or handed over
        vm.assertEq(keccak256(abi.encode(first)), keccak256(abi.encode(second)));
    }

    /// @dev Whoever is named has the money and the roles; another holder is another deployment.
    function testFuzz_deploy(address holder, address guardian, uint96 supply, uint16 threshold) public {
        vm.assume(holder != address(0));
        parameters.holder = holder;
        parameters.guardian = guardian;
        parameters.supply = supply;
        parameters.registry.threshold = 1 + threshold % 256;
        Deploy.Addresses memory addresses = script.deploy(parameters);
        script.verify(parameters, addresses);
        vm.assertEq(NCNToken(addresses.token).balanceOf(holder), supply);
        InferencePayment payment = InferencePayment(addresses.payment);
        vm.assertTrue(payment.hasRole(payment.GUARDIAN_ROLE(), guardian));
    }

    function test_revert_withoutProposers() public {
        vm.chainId(1);
        vm.expectRevert(abi.encodeWithSelector(Deploy.Deploy__NoProposers.selector, 1));
        script.parametersFromEnvironment();
    }

    function test_revert_withoutFactory() public {
        address factory = 0x4e59b44847b379578588920cA78FbF26c0B4956C;
        vm.etch(factory, hex"");
        vm.expectRevert(abi.encodeWithSelector(Deploy.Deploy__NoFactory.selector, factory, block.chainid));
        script.deploy(parameters);
    }

    function test_revert_verify() public {
        Deploy.Addresses memory addresses = script.deploy(parameters);
        ValidatorRegistry registry = ValidatorRegistry(addresses.registry);
        bytes32 admin = registry.DEFAULT_ADMIN_ROLE();
        vm.prank(addresses.timelock);
        registry.grantRole(admin, parameters.deployer);
        vm.expectRevert(
            abi.encodeWithSelector(Deploy.Deploy__NotFinished.selector, "the deployer is still the registry's admin")
        );
        script.verify(parameters, addresses);
    }
}
