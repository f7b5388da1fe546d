package client

import pb "github.com/mmserve/mmserve/proto/mmserve/v1"

// Chat is a request to answer a conversation. Its other fields may be set on the result.
func Chat(messages ...*pb.Message) *pb.GenerateRequest {
	return &pb.GenerateRequest{Input: &pb.GenerateRequest_Chat{Chat: &pb.Chat{Messages: messages}}}
}

// Prompt is a request to continue a text as it is, without a chat template.
func Prompt(parts ...*pb.Part) *pb.GenerateRequest {
	return &pb.GenerateRequest{Input: &pb.GenerateRequest_Prompt{Prompt: &pb.Prompt{Parts: parts}}}
}

// System is instructions that come before a conversation.
func System(parts ...*pb.Part) *pb.Message {
	return &pb.Message{Role: pb.Role_ROLE_SYSTEM, Parts: parts}
}

// User is a turn of the one who asks.
func User(parts ...*pb.Part) *pb.Message { return &pb.Message{Role: pb.Role_ROLE_USER, Parts: parts} }

// Assistant is an earlier turn of the model.
func Assistant(parts ...*pb.Part) *pb.Message {
	return &pb.Message{Role: pb.Role_ROLE_ASSISTANT, Parts: parts}
}

// Text is a piece of text.
func Text(text string) *pb.Part { return &pb.Part{Content: &pb.Part_Text{Text: text}} }

// ImageBytes is an image: the bytes of a JPEG, PNG, GIF, BMP, TIFF or WebP file, which are not copied.
func ImageBytes(data []byte) *pb.Part {
	return &pb.Part{Content: &pb.Part_Image{Image: &pb.Image{Data: data}}}
}
