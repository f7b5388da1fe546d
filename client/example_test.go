package client_test

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// captioner is a server that says of every image the same, in two pieces.
type captioner struct{ pb.UnimplementedMMServeServer }

func (captioner) Generate(context.Context, *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	return &pb.GenerateResponse{Text: "a small red circle"}, nil
}

func (captioner) GenerateStream(_ *pb.GenerateRequest, s grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	for _, e := range []*pb.GenerateStreamResponse{
		{Event: &pb.GenerateStreamResponse_Start{Start: &pb.StreamStart{Id: "1"}}},
		{Event: &pb.GenerateStreamResponse_Delta{Delta: &pb.StreamDelta{Text: "a small"}}},
		{Event: &pb.GenerateStreamResponse_Delta{Delta: &pb.StreamDelta{Text: " red circle"}}},
		{Event: &pb.GenerateStreamResponse_Finish{Finish: &pb.StreamFinish{}}},
	} {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return nil
}

// connect dials a captioner in memory. A real server is dialed by address: client.Dial("localhost:8089").
func connect() (c *client.Client, stop func()) {
	lis := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	//lint:ignore SA1019 it is what the client calls
	pb.RegisterMMServeServer(s, captioner{})
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(lis) }()
	c, err := client.Dial("passthrough:///memory", client.WithTransportCredentials(insecure.NewCredentials()),
		client.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return lis.DialContext(ctx)
		})))
	if err != nil {
		panic(err)
	}
	return c, func() { _ = c.Close(); s.Stop(); <-ended }
}

func ExampleClient_Generate() {
	c, stop := connect()
	defer stop()
	image := []byte("the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file")
	out, err := c.Generate(context.Background(), client.Chat(
		client.System(client.Text("Answer in one sentence.")),
		client.User(client.ImageBytes(image), client.Text("Describe the image.")),
	))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(out.GetText())
	// Output: a small red circle
}

func ExampleClient_Stream() {
	c, stop := connect()
	defer stop()
	in := client.Chat(client.User(client.ImageBytes([]byte("…")), client.Text("Describe the image.")))
	for event, err := range c.Stream(context.Background(), in) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Print(event.GetDelta().GetText())
	}
	fmt.Println(".")
	// Output: a small red circle.
}
