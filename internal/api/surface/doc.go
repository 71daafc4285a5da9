// Package surface writes down what an API server serves: groups, resources, verbs, table columns
// and OpenAPI operations, as lines of text that can be compared. Only tests use it. Start at Collect.
package surface
