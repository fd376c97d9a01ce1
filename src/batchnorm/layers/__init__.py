"""The layers: skins that hold state and call the one mathematics."""
