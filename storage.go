package atelier

// Storage is what a device says of the content on its disk, besides
// Facts.DiskFree: what a plan has to know to say what is still to come, how, and
// whether it fits.
type Storage struct {
	Reserve int64 `json:"reserve_bytes,omitempty"` // bytes of the disk that stay free
	// KeepsPrevious tells that Kept stay although a disk is full.
	KeepsPrevious bool `json:"keeps_previous,omitempty"`
	// Rate is the bytes a second in which content came last since the agent started,
	// 0 where none did.
	Rate int64 `json:"rate_bytes,omitempty"`
	// Content is what is there, verified and whole; at most MaxStored, the largest.
	Content []Stored `json:"content"`
	// More tells that Content or Kept are not all.
	More bool `json:"more,omitempty"`
	// Kept are the versions that stay only so that the way back is short.
	Kept []Kept `json:"kept,omitempty"`
}

// MaxStored is how many contents, and how many files of kept versions, a device
// lists at most, so that its report fits a message.
const MaxStored = 128

// Stored is content on a device.
type Stored struct {
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"`
	// Unneeded tells that nothing on the device needs it: it goes when the disk is full.
	Unneeded bool `json:"unneeded,omitempty"`
}

// Kept is a version that a device ran before the present one.
type Kept struct {
	Deployment string `json:"deployment"` // id
	Model      string `json:"model"`
	Version    int    `json:"version"`
	Entry      string `json:"entry,omitempty"`
	Files      []File `json:"files"` // those of its runtime included
}
