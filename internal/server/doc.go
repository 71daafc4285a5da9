// Package server builds every component of a Gantry process and wires them by hand, in the
// order in which they start.
//
// ControlPlane is what needs no machine: store, API, controllers and scheduler. Node is what
// turns a machine into one: containers, agent, network. Up puts both together for "gantry
// up". Nothing else constructs components; read this package to see who gets what.
package server
