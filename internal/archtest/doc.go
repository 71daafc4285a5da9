// Package archtest holds the rules about the whole source and the test that enforces them.
//
// layers.txt says who may import whom; exceptions.txt lists breaches of the size limits, and only
// shrinks. The test parses the source itself, in its own process: a test that shells out to "go
// list" is answered from the test cache and never fails.
package archtest
