// Package e2e boots the real programs (hub, agents, gateways, model servers) on
// free ports and uses them the way people do: by the command line, over HTTP and
// with other people's clients. Of the project it imports only what starts programs, so
// that what it proves holds for whoever stands outside.
package e2e
