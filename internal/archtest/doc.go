// Package archtest holds the tests that keep the architecture: who may import
// whom (docs/architecture.md has the table), and what may not be linked into a
// program. It reads what `go list` tells and contains no code of its own.
package archtest
