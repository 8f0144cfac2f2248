// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Network} from "../Network.sol";

/// @notice Each digest against the plain words of EIP-712.
contract StatementsTest is Network {
    function test_domain() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("NCN InferencePayment"),
                keccak256("1"),
                block.chainid,
                address(payment)
            )
        );
        vm.assertEq(payment.DOMAIN_SEPARATOR(), domain);
        (, string memory name, string memory version, uint256 chain, address verifier,,) =
            IERC5267(address(payment)).eip712Domain();
        vm.assertEq(name, "NCN InferencePayment");
        vm.assertEq(version, "1");
        vm.assertEq(chain, block.chainid);
        vm.assertEq(verifier, address(payment));
    }

    function test_domainFollowsTheChain() public {
        bytes32 before = payment.hashFailure("id");
        vm.chainId(block.chainid + 1);
        vm.assertNotEq(payment.hashFailure("id"), before);
    }

    function testFuzz_hashVoucher(bytes32 id, uint96 cumulative) public view {
        bytes32 typeHash = keccak256("Voucher(bytes32 channelId,uint96 cumulative)");
        expectDigest(payment.hashVoucher(id, cumulative), abi.encode(typeHash, id, cumulative));
    }

    function testFuzz_hashBatch(IInferencePayment.Batch memory batch) public view {
        bytes32 typeHash = keccak256(
            "Batch(address gateway,uint64 nonce,uint32 epoch,uint32 count,bytes32 receiptsRoot,bytes32 daHash,"
            "bytes32 claimsHash,bytes32 creditsHash)"
        );
        expectDigest(payment.hashBatch(batch), abi.encode(typeHash, batch));
    }

    function testFuzz_hashPreprocess(bytes32 id, bytes32 commitment) public view {
        bytes32 typeHash = keccak256("Preprocess(bytes32 requestId,bytes32 commitment)");
        expectDigest(payment.hashPreprocess(id, commitment), abi.encode(typeHash, id, commitment));
    }

    function testFuzz_hashCompletion(bytes32 id, bytes32 outputHash, uint96 fee) public view {
        bytes32 typeHash = keccak256("Completion(bytes32 requestId,bytes32 resultHash)");
        bytes32 resultHash = keccak256(abi.encode(outputHash, fee));
        expectDigest(payment.hashCompletion(id, outputHash, fee), abi.encode(typeHash, id, resultHash));
    }

    function testFuzz_hashFailure(bytes32 id) public view {
        expectDigest(payment.hashFailure(id), abi.encode(keccak256("Failure(bytes32 requestId)"), id));
    }

    function testFuzz_hashRequest(IInferencePayment.Request memory request) public view {
        vm.assertEq(payment.hashRequest(request), keccak256(abi.encode(request)));
    }

    function testFuzz_hashClaims(IInferencePayment.Claim[] memory claims) public view {
        vm.assertEq(payment.hashClaims(claims), keccak256(abi.encode(claims)));
    }

    function testFuzz_hashCredits(IInferencePayment.Credit[] memory credits) public view {
        vm.assertEq(payment.hashCredits(credits), keccak256(abi.encode(credits)));
    }

    function testFuzz_ids(address payer, address signer, address to, uint64 nonce) public view {
        vm.assertEq(payment.channelId(payer, signer, to), keccak256(abi.encode(payer, signer, to)));
        vm.assertEq(
            payment.requestId(payer, nonce), keccak256(abi.encode(address(payment), block.chainid, payer, nonce))
        );
    }

    function expectDigest(bytes32 digest, bytes memory message) private view {
        bytes32 domain = payment.DOMAIN_SEPARATOR();
        vm.assertEq(digest, keccak256(abi.encodePacked(hex"1901", domain, keccak256(message))));
    }
}
