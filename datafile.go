package atelier

import "time"

// DataFile is a Parquet file of recorded requests in a workspace. It never changes.
type DataFile struct {
	Meta            // the name is its path: ENDPOINT/VERSION/DATE/ID.parquet
	Endpoint string `json:"endpoint"` // the name that the endpoint had
	Model    string `json:"model"`
	Version  int    `json:"version"`
	// ModelDigest is the model version's digest, Digest the file's own.
	ModelDigest Digest    `json:"model_digest"`
	Date        string    `json:"date"` // when the hub got the records, 2006-01-02, UTC
	Digest      Digest    `json:"digest"`
	Size        int64     `json:"size"`
	Records     int       `json:"records"`
	First       time.Time `json:"first"` // the times of the oldest and the newest record, by the devices' clocks
	Last        time.Time `json:"last"`
}
