package main

// transfer measures how versions come to devices: how fast, over which links, and
// to how many at once.
var transfer = benchmark{
	name:  "transfer",
	about: "a version's way to devices: bytes, speed, thin links, many devices",
	parts: []part{
		{"speed", transferSpeed},
		{"thin", transferThin},
		{"many", transferMany},
		{"pairs", transferPairs},
	},
}
