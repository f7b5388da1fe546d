//go:build !nostores

package main

// The object stores that caption reads from and writes to, by the scheme of their URLs: file, s3, gs, azblob.
import (
	_ "gocloud.dev/blob/azureblob"
	_ "gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/gcsblob"
	_ "gocloud.dev/blob/s3blob"
)
