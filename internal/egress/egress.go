// Package egress is the gate behind a service: nothing leaves that no destination names.
package egress
