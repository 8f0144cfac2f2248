// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Network} from "../Network.sol";
import {Signatures} from "./Signatures.sol";

/// @title What attacks have in common: a victim with deposits, an attacker with none, and calls that must be refused
abstract contract Battlefield is Network {
    /// @dev Not block.chainid, which the optimizer may read again after it was changed.
    uint256 internal constant CHAIN = 31_337;
    uint256 internal constant ATTACKER_KEY = 0xBAD;
    address internal immutable attacker = vm.addr(ATTACKER_KEY);
    address internal immutable accomplice = _named("accomplice");

    /// @dev The victim is the client: 1,000 in a channel of its own key's, 1,000 in one of its session key's, 1,000 in
    /// its account.
    function setUp() public virtual override {
        super.setUp();
        vm.startPrank(client);
        payment.deposit(client, client, gateway, 1_000 ether);
        payment.deposit(client, session, gateway, 1_000 ether);
        payment.depositAccount(1_000 ether);
        vm.stopPrank();
    }

    // --- calls ---

    function refused(address caller, address target, bytes memory data, bytes4 reason) internal {
        vm.prank(caller);
        (bool success, bytes memory answer) = target.call(data);
        vm.assertFalse(success, "the attack succeeded");
        vm.assertEq(bytes32(bytes4(answer)), bytes32(reason), "refused for another reason");
    }

    function accepted(address caller, address target, bytes memory data) internal returns (bytes memory) {
        vm.prank(caller);
        (bool success, bytes memory answer) = target.call(data);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
        return answer;
    }

    // --- batches ---

    /// @dev A batch that draws 100 from the client's first channel: 80 for the node, 10 for the gateway.
    function hundred(uint64 nonce)
        internal
        view
        returns (
            IInferencePayment.Batch memory batch,
            IInferencePayment.Claim[] memory claims,
            IInferencePayment.Credit[] memory credits
        )
    {
        (, uint96 spent,) = payment.channels(payment.channelId(client, client, gateway));
        claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, CLIENT_KEY, gateway, spent + 100 ether, spent + 100 ether);
        credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, 80 ether);
        batch = batchOf(gateway, nonce, 1, claims, credits);
    }

    /// @dev The call that settles a batch as validators 0, 1 and 2 signed it.
    function settleCall(
        IInferencePayment.Batch memory batch,
        IInferencePayment.Claim[] memory claims,
        IInferencePayment.Credit[] memory credits
    ) internal view returns (bytes memory) {
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        return abi.encodeCall(payment.settleBatch, (batch, claims, credits, 7, signatures));
    }

    function hundredCall(uint64 nonce) internal view returns (bytes memory) {
        (
            IInferencePayment.Batch memory batch,
            IInferencePayment.Claim[] memory claims,
            IInferencePayment.Credit[] memory credits
        ) = hundred(nonce);
        return settleCall(batch, claims, credits);
    }

    /// @dev A batch over these claims and credits, signed by validators 0, 1 and 2 as if they had not looked.
    function blindCall(
        address to,
        uint64 nonce,
        IInferencePayment.Claim[] memory claims,
        IInferencePayment.Credit[] memory credits
    ) internal view returns (bytes memory) {
        return settleCall(batchOf(to, nonce, 1, claims, credits), claims, credits);
    }

    function one(IInferencePayment.Claim memory claim) internal pure returns (IInferencePayment.Claim[] memory claims) {
        claims = new IInferencePayment.Claim[](1);
        claims[0] = claim;
    }

    function one(address payee, uint96 amount) internal pure returns (IInferencePayment.Credit[] memory credits) {
        credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(payee, amount);
    }

    // --- requests ---

    function initiateCall(IInferencePayment.Request memory request) internal view returns (bytes memory) {
        return abi.encodeCall(payment.initiateInferenceRequest, (request, 7, signaturesOf(7, preprocessOf(request))));
    }

    function completeCall(IInferencePayment.Request memory request, uint96 fee) internal view returns (bytes memory) {
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes memory signatures = signaturesOf(7, payment.hashCompletion(id, "output", fee));
        return abi.encodeCall(payment.completeInferenceRequest, (request, "output", fee, 7, signatures));
    }

    function failCall(IInferencePayment.Request memory request) internal view returns (bytes memory) {
        bytes32 id = payment.requestId(request.client, request.nonce);
        return abi.encodeCall(payment.markRequestFailed, (request, 7, signaturesOf(7, payment.hashFailure(id))));
    }

    // --- authorizations ---

    /// @dev The signature of `key` under a transfer to the payment contract, for a channel.
    function authorization(uint256 key, bytes32 channel, uint96 amount, bytes32 salt)
        internal
        view
        returns (bytes memory)
    {
        bytes32 nonce = keccak256(abi.encode(channel, salt));
        uint256 validBefore = block.timestamp + 1 hours;
        return
            signatureOf(
                key, Signatures.receiveDigest(token, vm.addr(key), address(payment), amount, validBefore, nonce)
            );
    }

    function authorizedCall(
        address payer,
        address signer,
        address to,
        uint96 amount,
        bytes32 salt,
        bytes memory signature
    ) internal view returns (bytes memory) {
        return abi.encodeCall(
            payment.depositWithAuthorization, (payer, signer, to, amount, 0, block.timestamp + 1 hours, salt, signature)
        );
    }

    // --- what somebody has ---

    function freeOf(address account) internal view returns (uint96 free) {
        (free,) = payment.accounts(account);
    }

    function leftIn(address payer, address signer, address to) internal view returns (uint96) {
        (uint96 deposited, uint96 spent,) = payment.channels(payment.channelId(payer, signer, to));
        return deposited - spent;
    }
}
