"""The network: trunk, feature pyramid, subnets and anchors."""
