// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {INCNToken} from "../../src/interfaces/INCNToken.sol";
import {NCNToken} from "../../src/NCNToken.sol";
import {VM, Vm} from "../../script/Vm.sol";

/// @dev A wallet that accepts one digest, whatever the signature.
contract Wallet is IERC1271 {
    bytes32 private immutable _accepted;

    constructor(bytes32 accepted) {
        _accepted = accepted;
    }

    function isValidSignature(bytes32 hash, bytes memory) external view returns (bytes4) {
        return hash == _accepted ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

contract NCNTokenTest {
    Vm private constant vm = VM;
    uint256 private constant PAYER_KEY = 0xA11CE;
    uint256 private constant NOW = 1_800_000_000;
    bytes32 private constant NONCE = keccak256("random");

    address private immutable payer = VM.addr(PAYER_KEY);
    address private immutable payee = address(0xB0B);
    NCNToken private token;

    function setUp() public {
        vm.warp(NOW);
        token = new NCNToken(payer, 1_000 ether);
    }

    // --- constructor ---

    function test_constructor() public view {
        vm.assertEq(token.name(), "NCN Token");
        vm.assertEq(token.symbol(), "NCN");
        vm.assertEq(uint256(token.decimals()), 18);
        vm.assertEq(token.version(), "1");
        vm.assertEq(token.totalSupply(), 1_000 ether);
        vm.assertEq(token.balanceOf(payer), 1_000 ether);
    }

    function testFuzz_constructor(uint96 supply) public {
        vm.assertEq(new NCNToken(payee, supply).balanceOf(payee), supply);
    }

    function testFuzz_revert_constructorSupply(uint256 supply) public {
        supply = supply | (uint256(1) << 96);
        vm.expectRevert(abi.encodeWithSelector(INCNToken.NCNToken__SupplyTooLarge.selector, supply, type(uint96).max));
        new NCNToken(payer, supply);
    }

    // --- version and domain ---

    function test_domain() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("NCN Token"),
                keccak256("1"),
                block.chainid,
                address(token)
            )
        );
        vm.assertEq(token.DOMAIN_SEPARATOR(), domain);
    }

    // --- transferBatch ---

    function test_transferBatch() public {
        INCNToken.Payout[] memory payouts = new INCNToken.Payout[](2);
        payouts[0] = INCNToken.Payout(payee, 3 ether);
        payouts[1] = INCNToken.Payout(address(0xCAFE), 4 ether);
        vm.prank(payer);
        vm.assertTrue(token.transferBatch(payouts));
        vm.assertEq(token.balanceOf(payee), 3 ether);
        vm.assertEq(token.balanceOf(address(0xCAFE)), 4 ether);
        vm.assertEq(token.balanceOf(payer), 993 ether);
    }

    function testFuzz_transferBatch(uint64[] memory values) public {
        uint256 length = values.length > 16 ? 16 : values.length;
        INCNToken.Payout[] memory payouts = new INCNToken.Payout[](length);
        uint256 sum = 0;
        for (uint256 i = 0; i < length; ++i) {
            payouts[i] = INCNToken.Payout(address(uint160(0x1000 + i)), values[i]);
            sum += values[i];
        }
        vm.prank(payer);
        token.transferBatch(payouts);
        for (uint256 i = 0; i < length; ++i) {
            vm.assertEq(token.balanceOf(payouts[i].to), values[i]);
        }
        vm.assertEq(token.balanceOf(payer), 1_000 ether - sum);
    }

    function test_revert_transferBatchAllOrNone() public {
        INCNToken.Payout[] memory payouts = new INCNToken.Payout[](2);
        payouts[0] = INCNToken.Payout(payee, 3 ether);
        payouts[1] = INCNToken.Payout(address(0), 1);
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, address(0)));
        token.transferBatch(payouts);
        vm.assertEq(token.balanceOf(payee), 0);
        payouts[1] = INCNToken.Payout(payee, 998 ether);
        vm.prank(payer);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, payer, 997 ether, 998 ether)
        );
        token.transferBatch(payouts);
    }

    // --- permit ---

    function test_permit() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, permitDigest(5 ether, NOW));
        token.permit(payer, payee, 5 ether, NOW, v, r, s);
        vm.assertEq(token.allowance(payer, payee), 5 ether);
        vm.assertEq(token.nonces(payer), 1);
    }

    function testFuzz_permit(uint256 value, uint256 deadline) public {
        vm.assume(deadline >= NOW);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, permitDigest(value, deadline));
        token.permit(payer, payee, value, deadline, v, r, s);
        vm.assertEq(token.allowance(payer, payee), value);
    }

    function test_revert_permitReplayedAndLate() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, permitDigest(5 ether, NOW));
        token.permit(payer, payee, 5 ether, NOW, v, r, s);
        vm.expectPartialRevert(ERC20Permit.ERC2612InvalidSigner.selector);
        token.permit(payer, payee, 5 ether, NOW, v, r, s);
        vm.warp(NOW + 1);
        vm.expectRevert(abi.encodeWithSelector(ERC20Permit.ERC2612ExpiredSignature.selector, NOW));
        token.permit(payer, payee, 5 ether, NOW, v, r, s);
    }

    // --- EIP-3009 ---

    function test_transferWithAuthorization() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, transferDigest(payer, 5 ether, NOW - 1, NOW + 1, NONCE));
        token.transferWithAuthorization(payer, payee, 5 ether, NOW - 1, NOW + 1, NONCE, v, r, s);
        vm.assertEq(token.balanceOf(payee), 5 ether);
        vm.assertTrue(token.authorizationState(payer, NONCE));
    }

    function testFuzz_transferWithAuthorization(uint96 value, bytes32 nonce, uint40 after_, uint40 before) public {
        value = uint96(value % 1_000 ether);
        uint256 validAfter = after_ % NOW;
        uint256 validBefore = NOW + 1 + (before % 1_000_000_000);
        bytes memory signature = signatureOf(transferDigest(payer, value, validAfter, validBefore, nonce));
        token.transferWithAuthorization(payer, payee, value, validAfter, validBefore, nonce, signature);
        vm.assertEq(token.balanceOf(payee), value);
    }

    function test_transferWithAuthorizationOfWallet() public {
        address wallet = address(uint160(uint256(keccak256("wallet"))));
        Wallet made = new Wallet(transferDigest(wallet, 5 ether, 0, NOW + 1, NONCE));
        vm.etch(wallet, address(made).code);
        vm.prank(payer);
        token.transfer(wallet, 5 ether);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.transferWithAuthorization(wallet, payee, 4 ether, 0, NOW + 1, NONCE, hex"");
        token.transferWithAuthorization(wallet, payee, 5 ether, 0, NOW + 1, NONCE, hex"");
        vm.assertEq(token.balanceOf(payee), 5 ether);
    }

    function test_revert_transferWithAuthorization() public {
        bytes memory signature = signatureOf(transferDigest(payer, 5 ether, NOW - 1, NOW + 1, NONCE));
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.transferWithAuthorization(payer, payee, 6 ether, NOW - 1, NOW + 1, NONCE, signature);
        vm.warp(NOW + 1);
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009InvalidAuthorizationTime.selector, NOW - 1, NOW + 1));
        token.transferWithAuthorization(payer, payee, 5 ether, NOW - 1, NOW + 1, NONCE, signature);
        vm.warp(NOW);
        token.transferWithAuthorization(payer, payee, 5 ether, NOW - 1, NOW + 1, NONCE, signature);
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, payer, NONCE));
        token.transferWithAuthorization(payer, payee, 5 ether, NOW - 1, NOW + 1, NONCE, signature);
    }

    function test_receiveWithAuthorization() public {
        bytes32 digest = receiveDigest(5 ether, NONCE);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, digest);
        vm.prank(payee);
        token.receiveWithAuthorization(payer, payee, 5 ether, 0, NOW + 1, NONCE, v, r, s);
        vm.assertEq(token.balanceOf(payee), 5 ether);
    }

    function testFuzz_receiveWithAuthorization(uint96 value, bytes32 nonce) public {
        value = uint96(value % 1_000 ether);
        bytes memory signature = signatureOf(receiveDigest(value, nonce));
        vm.prank(payee);
        token.receiveWithAuthorization(payer, payee, value, 0, NOW + 1, nonce, signature);
        vm.assertEq(token.balanceOf(payee), value);
    }

    function test_revert_receiveWithAuthorization() public {
        bytes memory signature = signatureOf(receiveDigest(5 ether, NONCE));
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, payee));
        token.receiveWithAuthorization(payer, payee, 5 ether, 0, NOW + 1, NONCE, signature);
        // What is signed for one purpose is nothing for the other.
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.transferWithAuthorization(payer, payee, 5 ether, 0, NOW + 1, NONCE, signature);
        bytes memory other = signatureOf(transferDigest(payer, 5 ether, 0, NOW + 1, NONCE));
        vm.prank(payee);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.receiveWithAuthorization(payer, payee, 5 ether, 0, NOW + 1, NONCE, other);
    }

    function test_cancelAuthorization() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, cancelDigest(NONCE));
        token.cancelAuthorization(payer, NONCE, v, r, s);
        vm.assertTrue(token.authorizationState(payer, NONCE));
    }

    function testFuzz_cancelAuthorization(bytes32 nonce) public {
        token.cancelAuthorization(payer, nonce, signatureOf(cancelDigest(nonce)));
        bytes memory signature = signatureOf(transferDigest(payer, 1, 0, NOW + 1, nonce));
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, payer, nonce));
        token.transferWithAuthorization(payer, payee, 1, 0, NOW + 1, nonce, signature);
    }

    function test_revert_cancelAuthorization() public {
        bytes memory signature = signatureOf(cancelDigest(NONCE));
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.cancelAuthorization(payer, keccak256("another"), signature);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.cancelAuthorization(payee, NONCE, signature);
    }

    // --- digests ---

    function permitDigest(uint256 value, uint256 deadline) private view returns (bytes32) {
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        return digestOf(keccak256(abi.encode(typeHash, payer, payee, value, token.nonces(payer), deadline)));
    }

    function transferDigest(address from, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce)
        private
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256(
            "TransferWithAuthorization(address from,address to,uint256 value,"
            "uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        return digestOf(keccak256(abi.encode(typeHash, from, payee, value, validAfter, validBefore, nonce)));
    }

    function receiveDigest(uint256 value, bytes32 nonce) private view returns (bytes32) {
        bytes32 typeHash = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,"
            "uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        return digestOf(keccak256(abi.encode(typeHash, payer, payee, value, 0, NOW + 1, nonce)));
    }

    function cancelDigest(bytes32 nonce) private view returns (bytes32) {
        return digestOf(
            keccak256(abi.encode(keccak256("CancelAuthorization(address authorizer,bytes32 nonce)"), payer, nonce))
        );
    }

    function digestOf(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
    }

    function signatureOf(bytes32 digest) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(PAYER_KEY, digest);
        return abi.encodePacked(r, s, v);
    }
}
