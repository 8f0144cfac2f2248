// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IERC3009, IERC3009Cancel} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";

/// @title The network's token: ERC-20, EIP-2612 permit and EIP-3009 authorizations with random 32-byte nonces
/// @notice A fixed supply; no fee, no hook, no rebasing, no owner. The overloads with `bytes signature` also take
/// signatures of contract wallets (ERC-1271).
interface INCNToken is IERC20Metadata, IERC20Permit, IERC3009, IERC3009Cancel {
    /// @notice One of several transfers.
    /// @param to the payee
    /// @param value amount in base units
    struct Payout {
        address to;
        uint256 value;
    }

    /// @notice The supply of a token that is to be deployed exceeds what the network's contracts can count.
    error NCNToken__SupplyTooLarge(uint256 supply, uint256 maximum);

    /// @notice The version in the token's EIP-712 domain: "1".
    function version() external view returns (string memory);

    /// @notice Several transfers from the caller: all, or none where one fails.
    /// @param payouts in the order in which they are made
    /// @return always true
    function transferBatch(Payout[] calldata payouts) external returns (bool);

    /// @notice {IERC3009-transferWithAuthorization} with the signature in one piece.
    /// @param from the payer, whose signature it is
    /// @param to the payee
    /// @param value amount in base units
    /// @param validAfter Unix time in seconds after which it holds
    /// @param validBefore Unix time in seconds before which it holds
    /// @param nonce 32 random bytes; each is used once
    /// @param signature r, s, v (65 bytes), or what the payer's contract accepts
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    /// @notice {IERC3009-receiveWithAuthorization} with the signature in one piece; the caller is the payee.
    /// @param from the payer, whose signature it is
    /// @param to the payee: the caller
    /// @param value amount in base units
    /// @param validAfter Unix time in seconds after which it holds
    /// @param validBefore Unix time in seconds before which it holds
    /// @param nonce 32 random bytes; each is used once
    /// @param signature r, s, v (65 bytes), or what the payer's contract accepts
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    /// @notice {IERC3009Cancel-cancelAuthorization} with the signature in one piece.
    /// @param authorizer whose authorization is void from now on
    /// @param nonce of the authorization
    /// @param signature r, s, v (65 bytes), or what the authorizer's contract accepts
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes calldata signature) external;
}
