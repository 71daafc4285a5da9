// Package fairness keeps one client from starving the others: API priority and fairness, as FlowSchemas and
// PriorityLevelConfigurations say.
//
// Each request belongs to a flow of a priority level. A level has seats, so many as its share of all; it may borrow
// those that others have to lend and do not use. When it has none left, requests wait in queues: a flow has a hand of
// its level's queues (shuffle sharding), so a client that fills its own leaves others free, and the queue that has had
// the least service goes first. Requests that find their queues full, or wait too long, are refused.
//
// While nothing waits, a request costs a lookup of its schema and two short critical sections.
//
// Differences to upstream's implementation, with reasons, are in ADR 17. Start at Dispatcher.Acquire.
package fairness
