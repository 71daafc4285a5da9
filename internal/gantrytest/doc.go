// Package gantrytest is a whole control plane inside one test: the real API over a real etcd
// member, with no socket, so that it runs inside a testing/synctest bubble, where a day
// passes in seconds. Only machines are faked. Start at Start.
package gantrytest
