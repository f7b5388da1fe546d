// Command stores serves stand-ins for S3 and Google Cloud Storage on loopback, for tests: gofakes3 and fake-gcs-server,
// in memory.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"

	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

func main() {
	s3 := flag.String("s3", "127.0.0.1:0", "address of the S3 stand-in")
	gcs := flag.String("gcs", "127.0.0.1:0", "address of the GCS stand-in")
	bucket := flag.String("bucket", "images", "bucket that both have")
	objects := flag.Int("objects", 0, "objects of one byte that the S3 bucket begins with: many/0000000.png and so on")
	flag.Parse()
	log.SetFlags(0)
	backend := s3mem.New()
	if err := backend.CreateBucket(*bucket); err != nil {
		log.Fatal(err)
	}
	for i := range *objects {
		name := fmt.Sprintf("many/%07d.png", i)
		if _, err := backend.PutObject(*bucket, name, nil, strings.NewReader("x"), 1, nil); err != nil {
			log.Fatal(err)
		}
	}
	lis, err := net.Listen("tcp", *s3)
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(lis, gofakes3.New(backend).Server())) }()
	host, port, err := net.SplitHostPort(*gcs)
	if err != nil {
		log.Fatal(err)
	}
	var n uint16
	if _, err := fmt.Sscan(port, &n); err != nil {
		log.Fatal(err)
	}
	g, err := fakestorage.NewServerWithOptions(fakestorage.Options{Scheme: "http", Host: host, Port: n, PublicHost: *gcs,
		ExternalURL: "http://" + *gcs})
	if err != nil {
		log.Fatal(err)
	}
	g.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: *bucket})
	fmt.Println("ready", lis.Addr(), g.URL())
	select {}
}
