// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.28;

/// Claims transfers that never happened: it emits the events of a token without being one.
contract Impostor {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    function claimTransfer(address from, address to, uint256 value) external {
        emit Transfer(from, to, value);
    }

    function claimAuthorizationUsed(address authorizer, bytes32 nonce) external {
        emit AuthorizationUsed(authorizer, nonce);
    }
}
