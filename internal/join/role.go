package join

// RolePath is where a node's API tells of, and takes, changes of the machine's role.
const RolePath = "/gantry/role"

// RoleRequest asks a machine to take another role.
type RoleRequest struct {
	Role   Role   `json:"role"`
	Server string `json:"server,omitempty"` // to become a server: ADDRESS:PORT of one
	Token  string `json:"token,omitempty"`  // to become a server: one for servers
}

// RoleStatus is what a machine says of its role.
type RoleStatus struct {
	Role    Role   `json:"role"`
	Failure string `json:"failure,omitempty"` // why the last change came to nothing
}
