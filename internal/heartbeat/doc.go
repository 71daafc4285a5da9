// Package heartbeat is what a node and the servers tell each other several times a second: the node that it is alive
// and what it does when it is cut off, a server whether it leads and whether another node could take the node's
// stateful pods over.
//
// Beat and Answer are the words on the wire. Sender sends a node's beats to every server, each on a connection of its
// own that nothing else uses, so that neither a slow API nor a busy agent delays them; Remote is a server reached over
// TLS. What a server does with beats is in internal/controller/node. Source: ADR 0036 and 0039. Start at Sender.Run.
package heartbeat
