// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {DisputeManager} from "../src/DisputeManager.sol";
import {InferencePayment} from "../src/InferencePayment.sol";
import {IDisputeManager} from "../src/interfaces/IDisputeManager.sol";
import {IInferencePayment} from "../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../src/interfaces/IValidatorRegistry.sol";
import {NCNToken} from "../src/NCNToken.sol";
import {ValidatorRegistry} from "../src/ValidatorRegistry.sol";
import {VM, Vm} from "../script/Vm.sol";

/// @title A deployed network with five validators in epoch 1, and what its people sign
/// @notice `timelock` is an address here: what the timelock itself does is OpenZeppelin's, and Deploy is tested apart.
abstract contract Network {
    Vm internal constant vm = VM;

    uint256 internal constant VALIDATORS = 5;
    uint256 internal constant STAKE = 10_000 ether;
    uint256 internal constant BOND = 1_000 ether;
    uint256 internal constant START = 1_800_000_000;

    address internal immutable timelock = _named("timelock");
    address internal immutable guardian = _named("guardian");
    address internal immutable treasurer = _named("treasury");
    address internal immutable gateway = _named("gateway");
    address internal immutable node = _named("node");
    address internal immutable stranger = _named("stranger");

    uint256 internal constant CLIENT_KEY = 0xC11E47;
    uint256 internal constant SESSION_KEY = 0x5E5510;
    address internal immutable client = VM.addr(CLIENT_KEY);
    address internal immutable session = VM.addr(SESSION_KEY);

    NCNToken internal token;
    ValidatorRegistry internal registry;
    InferencePayment internal payment;
    DisputeManager internal disputes;

    function setUp() public virtual {
        vm.warp(START);
        token = deployToken();
        registry = new ValidatorRegistry(token, address(this), treasurer, registryConfig());
        payment = new InferencePayment(token, registry, timelock, guardian, paymentConfig());
        disputes = new DisputeManager(payment);
        registry.grantRole(registry.DISPUTES_ROLE(), address(disputes));
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            registerValidator(validatorKey(i), STAKE);
        }
        registry.advanceEpoch();
        fund(client, 1_000_000 ether);
    }

    // --- settings ---

    function registryConfig() internal pure virtual returns (IValidatorRegistry.Config memory) {
        return IValidatorRegistry.Config({
            minStake: uint96(STAKE),
            minBond: uint96(BOND),
            epochLength: 1 days,
            snapshotLifetime: 2 days,
            disputeWindow: 7 days,
            unbondingPeriod: 14 days,
            threshold: 3
        });
    }

    function paymentConfig() internal pure virtual returns (IInferencePayment.Config memory) {
        return IInferencePayment.Config({withdrawalDelay: 2 days, withdrawalWindow: 7 days, maxRequestTime: 1 days});
    }

    /// @dev The holder of all is this contract.
    function deployToken() internal virtual returns (NCNToken) {
        return new NCNToken(address(this), 1_000_000_000 ether);
    }

    // --- people ---

    /// @dev Key of validator i, in the order of registration, which is their order in epoch 1.
    function validatorKey(uint256 i) internal pure returns (uint256) {
        return 0xBA11D0 + i;
    }

    function validatorAt(uint256 i) internal pure returns (address) {
        return VM.addr(validatorKey(i));
    }

    function registerValidator(uint256 key, uint256 stake) internal returns (address validator) {
        validator = vm.addr(key);
        token.transfer(validator, stake);
        vm.startPrank(validator);
        token.approve(address(registry), type(uint256).max);
        registry.registerValidator(stake);
        vm.stopPrank();
    }

    /// @dev Gives tokens, and both contracts an allowance.
    function fund(address account, uint256 amount) internal {
        token.transfer(account, amount);
        vm.startPrank(account);
        token.approve(address(payment), type(uint256).max);
        token.approve(address(registry), type(uint256).max);
        vm.stopPrank();
    }

    function nextEpoch() internal returns (uint32) {
        vm.warp(block.timestamp + registry.epochLength());
        return registry.advanceEpoch();
    }

    // --- what they sign ---

    function signatureOf(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev Signatures of the validators in a bitmap, in ascending order.
    function signaturesOf(uint256 bitmap, bytes32 digest) internal pure returns (bytes memory signatures) {
        for (uint256 i = 0; i < 256; ++i) {
            if ((bitmap >> i) & 1 == 1) signatures = bytes.concat(signatures, signatureOf(validatorKey(i), digest));
        }
    }

    function endorse(uint32 epoch, uint256 bitmap, bytes32 digest)
        internal
        pure
        returns (IDisputeManager.Endorsement memory)
    {
        return IDisputeManager.Endorsement(epoch, bitmap, signaturesOf(bitmap, digest));
    }

    /// @dev A claim with a voucher of `key` up to `cumulative`.
    function claimOf(address payer, uint256 key, address to, uint96 cumulative, uint96 total)
        internal
        view
        returns (IInferencePayment.Claim memory)
    {
        address signer = vm.addr(key);
        bytes32 digest = payment.hashVoucher(payment.channelId(payer, signer, to), cumulative);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        bytes32 vs = bytes32((uint256(v - 27) << 255) | uint256(s));
        return IInferencePayment.Claim(payer, signer, cumulative, total, r, vs);
    }

    // --- batches ---

    function batchOf(
        address to,
        uint64 nonce,
        uint32 count,
        IInferencePayment.Claim[] memory claims,
        IInferencePayment.Credit[] memory credits
    ) internal view returns (IInferencePayment.Batch memory) {
        return IInferencePayment.Batch({
            gateway: to,
            nonce: nonce,
            epoch: registry.currentEpoch(),
            count: count,
            receiptsRoot: keccak256(abi.encode("receipts", nonce)),
            daHash: keccak256(abi.encode("published", nonce)),
            claimsHash: keccak256(abi.encode(claims)),
            creditsHash: keccak256(abi.encode(credits))
        });
    }

    /// @dev Settles with validators 0, 1 and 2.
    function settle(
        IInferencePayment.Batch memory batch,
        IInferencePayment.Claim[] memory claims,
        IInferencePayment.Credit[] memory credits
    ) internal {
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        payment.settleBatch(batch, claims, credits, 7, signatures);
    }

    // --- escrow ---

    function requestOf(uint96 amount) internal view returns (IInferencePayment.Request memory) {
        (, uint64 nonce) = payment.accounts(client);
        return IInferencePayment.Request({
            client: client,
            nonce: nonce,
            gateway: gateway,
            node: node,
            amount: amount,
            epoch: registry.currentEpoch(),
            expiry: uint64(block.timestamp + 1 hours),
            requestHash: keccak256(abi.encode("request", nonce))
        });
    }

    function preprocessOf(IInferencePayment.Request memory request) internal view returns (bytes32) {
        return payment.hashPreprocess(payment.requestId(request.client, request.nonce), keccak256(abi.encode(request)));
    }

    function initiate(IInferencePayment.Request memory request) internal returns (bytes32 id) {
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        vm.prank(request.client);
        return payment.initiateInferenceRequest(request, 7, signatures);
    }

    function complete(IInferencePayment.Request memory request, bytes32 outputHash, uint96 fee) internal {
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes memory signatures = signaturesOf(7, payment.hashCompletion(id, outputHash, fee));
        payment.completeInferenceRequest(request, outputHash, fee, 7, signatures);
    }

    function fail(IInferencePayment.Request memory request) internal {
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes memory signatures = signaturesOf(7, payment.hashFailure(id));
        payment.markRequestFailed(request, 7, signatures);
    }

    function _named(string memory name) internal pure returns (address) {
        return address(uint160(uint256(keccak256(bytes(name)))));
    }
}
