package atelier

import "time"

// Device is a machine that joined a workspace and runs atelier-agent. It
// belongs to exactly one workspace.
type Device struct {
	Meta
	Labels Labels `json:"labels,omitempty"`
	// Target is the kind of target that the device's modules run on by default.
	Target string `json:"target"` // "process"
	// Fingerprint is the SHA-256 of the device's public key (SubjectPublicKeyInfo, DER), in hex.
	Fingerprint string     `json:"fingerprint"`
	PublicKey   []byte     `json:"public_key"` // SubjectPublicKeyInfo, DER; P-256
	Shard       string     `json:"shard"`      // the topic shard that the device publishes under
	Certificate CertInfo   `json:"certificate"`
	Revoked     *time.Time `json:"revoked,omitempty"`
	// Transfer bounds the transfer of content to the device, besides its workspace's.
	Transfer *TransferPolicy `json:"transfer,omitempty"`
	// What follows is observed by the hub and written by it only.
	Connected  bool        `json:"connected"`
	LastSeen   *time.Time  `json:"last_seen,omitempty"`
	Agent      string      `json:"agent,omitempty"` // the agent's version
	Facts      Facts       `json:"facts"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// CertInfo says which certificate a device uses.
type CertInfo struct {
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// Facts are what a device says of itself.
type Facts struct {
	OS       string `json:"os,omitempty"`
	Arch     string `json:"arch,omitempty"`
	Kernel   string `json:"kernel,omitempty"`
	Glibc    string `json:"glibc,omitempty"` // version of the GNU C library, such as "2.36"; "" where there is none, or nobody said
	Hostname string `json:"hostname,omitempty"`
	CPUs     int    `json:"cpus,omitempty"`
	Memory   int64  `json:"memory_bytes,omitempty"`
	DiskFree int64  `json:"disk_free_bytes,omitempty"` // of the file system that holds the agent's content
	// Targets lists the kinds of targets that the agent can run modules on.
	Targets []string `json:"targets,omitempty"`
	// Runtimes says for each known runtime whether the device can run it.
	Runtimes []RuntimeSupport `json:"runtimes,omitempty"`
	// Features lists the optional parts of the wire protocol that the agent understands.
	Features []string `json:"features,omitempty"`
	// Gateway is the address on which the device's endpoints answer, such as "127.0.0.1:8600".
	Gateway string `json:"gateway,omitempty"`
}

// RuntimeSupport says whether a device can run a runtime, and why not.
type RuntimeSupport struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"` // one sentence where OK is false
}

// JoinToken lets devices join a workspace until it expires or is used up.
type JoinToken struct {
	Meta
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`   // how many devices may join with it
	Used    int       `json:"used"`   // how many did
	Labels  Labels    `json:"labels"` // given to each device that joins with it
	// Hash is the SHA-256 of the secret part, in hex; the secret itself is shown once and not kept.
	Hash string `json:"hash,omitempty"`
}
