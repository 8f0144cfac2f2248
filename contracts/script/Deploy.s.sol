// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {Create2} from "@openzeppelin/contracts/utils/Create2.sol";
import {DisputeManager} from "../src/DisputeManager.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {IInferencePayment} from "../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../src/interfaces/IValidatorRegistry.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {VM} from "./Vm.sol";

/// @title Deploys the network's contracts; run again, it does only what is missing
/// @notice Every address follows from the parameters and the code (CREATE2 through the usual deterministic deployment
/// proxy), so that a second run finds what the first one did, on a chain alone, without a file. The
/// parameters come from the environment; see `.env.example`.
contract Deploy {
    /// @notice What is deployed.
    struct Addresses {
        address token;
        address registry;
        address payment;
        address disputes;
        address timelock;
    }

    /// @notice What it is deployed with.
    struct Parameters {
        uint256 privateKey;
        address deployer;
        address holder;
        uint256 supply;
        uint256 timelockDelay;
        address[] proposers;
        address guardian;
        IValidatorRegistry.Config registry;
        IInferencePayment.Config payment;
    }

    error Deploy__NoProposers(uint256 chainId);
    error Deploy__NoFactory(address factory, uint256 chainId);
    error Deploy__WrongAddress(string name, address expected, address deployed);
    error Deploy__NotFinished(string what);

    /// @dev The deterministic deployment proxy (github.com/Arachnid/deterministic-deployment-proxy).
    address private constant FACTORY = 0x4e59b44847b379578588920cA78FbF26c0B4956C;
    bytes32 private constant SALT = keccak256("NCN 1");
    uint256 private constant DEVELOPMENT_CHAIN = 31_337;

    /// @notice Deploys with the parameters of the environment, and writes `deployments/<chain id>.json`.
    function run() external returns (Addresses memory addresses) {
        Parameters memory parameters = parametersFromEnvironment();
        VM.startBroadcast(parameters.privateKey);
        addresses = deploy(parameters);
        VM.stopBroadcast();
        verify(parameters, addresses);
        _write(addresses);
    }

    /// @notice The defaults, or what the environment says instead. PRIVATE_KEY is needed; PROPOSERS too, but for the
    /// development chain (31337), where it is the deployer.
    function parametersFromEnvironment() public view returns (Parameters memory parameters) {
        parameters.privateKey = VM.envUint("PRIVATE_KEY");
        parameters.deployer = VM.addr(parameters.privateKey);
        parameters.holder = VM.envOr("TOKEN_HOLDER", parameters.deployer);
        parameters.supply = VM.envOr("TOKEN_SUPPLY", uint256(1_000_000_000 ether));
        parameters.timelockDelay = VM.envOr("TIMELOCK_DELAY", uint256(2 days));
        parameters.proposers = VM.envOr("PROPOSERS", ",", new address[](0));
        if (parameters.proposers.length == 0) {
            if (block.chainid != DEVELOPMENT_CHAIN) revert Deploy__NoProposers(block.chainid);
            parameters.proposers = new address[](1);
            parameters.proposers[0] = parameters.deployer;
        }
        parameters.guardian = VM.envOr("GUARDIAN", parameters.proposers[0]);
        parameters.registry = IValidatorRegistry.Config({
            minStake: uint96(VM.envOr("MIN_STAKE", uint256(10_000 ether))),
            minBond: uint96(VM.envOr("MIN_BOND", uint256(1_000 ether))),
            epochLength: uint64(VM.envOr("EPOCH_LENGTH", uint256(1 days))),
            snapshotLifetime: uint64(VM.envOr("SNAPSHOT_LIFETIME", uint256(2 days))),
            disputeWindow: uint64(VM.envOr("DISPUTE_WINDOW", uint256(7 days))),
            unbondingPeriod: uint64(VM.envOr("UNBONDING_PERIOD", uint256(14 days))),
            threshold: uint16(VM.envOr("THRESHOLD", uint256(3)))
        });
        parameters.payment = IInferencePayment.Config({
            withdrawalDelay: uint64(VM.envOr("WITHDRAWAL_DELAY", uint256(2 days))),
            withdrawalWindow: uint64(VM.envOr("WITHDRAWAL_WINDOW", uint256(7 days))),
            maxRequestTime: uint64(VM.envOr("MAX_REQUEST_TIME", uint256(1 days)))
        });
    }

    /// @notice Deploys what is missing, connects the parts, and hands every role to the timelock.
    /// @param parameters what it is deployed with; the calls come from its deployer
    /// @return addresses of all parts
    function deploy(Parameters memory parameters) public returns (Addresses memory addresses) {
        if (FACTORY.code.length == 0) revert Deploy__NoFactory(FACTORY, block.chainid);
        addresses.timelock = _create(
            "TimelockController",
            abi.encodePacked(
                type(TimelockController).creationCode,
                abi.encode(parameters.timelockDelay, parameters.proposers, parameters.proposers, address(0))
            )
        );
        addresses.token = _create(
            "NCNToken", abi.encodePacked(type(NCNToken).creationCode, abi.encode(parameters.holder, parameters.supply))
        );
        addresses.registry = _create(
            "ValidatorRegistry",
            abi.encodePacked(
                type(ValidatorRegistry).creationCode,
                abi.encode(addresses.token, parameters.deployer, addresses.timelock, parameters.registry)
            )
        );
        addresses.payment = _create(
            "InferencePayment",
            abi.encodePacked(
                type(InferencePayment).creationCode,
                abi.encode(
                    addresses.token, addresses.registry, addresses.timelock, parameters.guardian, parameters.payment
                )
            )
        );
        addresses.disputes = _create(
            "DisputeManager", abi.encodePacked(type(DisputeManager).creationCode, abi.encode(addresses.payment))
        );
        _handOver(ValidatorRegistry(addresses.registry), parameters.deployer, addresses);
    }

    /// @notice Reverts unless everything is connected and the deployer has no role left.
    /// @param parameters what it was deployed with
    /// @param addresses of all parts
    function verify(Parameters memory parameters, Addresses memory addresses) public view {
        ValidatorRegistry registry = ValidatorRegistry(addresses.registry);
        InferencePayment payment = InferencePayment(addresses.payment);
        bytes32 admin = registry.DEFAULT_ADMIN_ROLE();
        _require(registry.hasRole(admin, addresses.timelock), "the timelock is not the registry's admin");
        _require(!registry.hasRole(admin, parameters.deployer), "the deployer is still the registry's admin");
        _require(payment.hasRole(admin, addresses.timelock), "the timelock is not the payment contract's admin");
        _require(
            registry.hasRole(registry.DISPUTES_ROLE(), addresses.disputes), "the dispute manager is not the slasher"
        );
        _require(address(payment.token()) == addresses.token, "the payment contract has another token");
        _require(address(payment.registry()) == addresses.registry, "the payment contract has another registry");
        _require(
            address(DisputeManager(addresses.disputes).payment()) == addresses.payment,
            "the dispute manager judges another contract"
        );
    }

    /// @dev The registry must know the dispute manager, which knows the payment contract, which knows the registry: so
    /// that the deployer is the registry's admin for a moment.
    function _handOver(ValidatorRegistry registry, address deployer, Addresses memory addresses) private {
        bytes32 admin = registry.DEFAULT_ADMIN_ROLE();
        if (!registry.hasRole(admin, deployer)) return; // was done before
        bytes32 slasher = registry.DISPUTES_ROLE();
        if (!registry.hasRole(slasher, addresses.disputes)) registry.grantRole(slasher, addresses.disputes);
        if (!registry.hasRole(admin, addresses.timelock)) registry.grantRole(admin, addresses.timelock);
        registry.renounceRole(admin, deployer);
    }

    function _create(string memory name, bytes memory creation) private returns (address expected) {
        expected = Create2.computeAddress(SALT, keccak256(creation), FACTORY);
        if (expected.code.length != 0) return expected;
        (bool success, bytes memory result) = FACTORY.call(abi.encodePacked(SALT, creation));
        // forge-lint: disable-next-line(unsafe-typecast)
        address deployed = success && result.length == 20 ? address(bytes20(result)) : address(0);
        if (deployed != expected) revert Deploy__WrongAddress(name, expected, deployed);
    }

    /// @dev `block` is that of the first run, from which events are to be read.
    function _write(Addresses memory addresses) private {
        string memory path = string.concat("deployments/", VM.toString(block.chainid), ".json");
        uint256 number = block.number;
        if (VM.exists(path)) {
            string memory before = VM.readFile(path);
            if (VM.parseJsonAddress(before, ".payment") == addresses.payment) {
                number = VM.parseJsonUint(before, ".block");
            }
        }
        VM.serializeUint("deployment", "chain_id", block.chainid);
        VM.serializeAddress("deployment", "token", addresses.token);
        VM.serializeAddress("deployment", "registry", addresses.registry);
        VM.serializeAddress("deployment", "payment", addresses.payment);
        VM.serializeAddress("deployment", "disputes", addresses.disputes);
        VM.serializeAddress("deployment", "timelock", addresses.timelock);
        VM.writeJson(VM.serializeUint("deployment", "block", number), path);
    }

    function _require(bool condition, string memory what) private pure {
        if (!condition) revert Deploy__NotFinished(what);
    }
}
