package config

// How machines reach each other's pods.
const (
	NetworkAuto  = "auto"  // by routes where they share a link, else by VXLAN
	NetworkVXLAN = "vxlan" // by VXLAN always: for links that drop addresses they do not know
)

// KeyNetworkMode is the name of the setting.
const KeyNetworkMode = "network-mode"

// networkKeys are the settings of the network between machines.
func networkKeys() []Key {
	return []Key{{Name: KeyNetworkMode, Default: NetworkAuto, set: setNetworkMode,
		Usage: "how other machines reach the pods here: auto (routes where they share a link, else VXLAN) or vxlan"}}
}

func setNetworkMode(c *Config, v []string) error {
	if v[0] != NetworkAuto && v[0] != NetworkVXLAN {
		return wrong("want auto or vxlan", "%q is no way between machines", v[0])
	}
	c.NetworkMode = v[0]
	return nil
}
