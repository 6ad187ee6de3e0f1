// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.28;

/// A wallet that is a contract: its one owner approves by signature (ERC-1271) and may make it call.
contract ContractWallet {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    receive() external payable {}

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length == 65) {
            address signer = ecrecover(
                digest, uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64])
            );
            if (signer != address(0) && signer == owner) return this.isValidSignature.selector;
        }
        return 0xffffffff;
    }

    function execute(address to, uint256 value, bytes calldata data) external returns (bytes memory) {
        require(msg.sender == owner, "caller is not the owner");
        (bool ok, bytes memory answer) = to.call{value: value}(data);
        require(ok, "call failed");
        return answer;
    }
}
