// Posts files with the HTTP client of Java, whose default is HTTP/2: it sends `Upgrade: h2c`.
// java Client.java URL (CONTENT_TYPE FILE)...
// It prints a status and a body for each file with its length, and then for each in chunks.

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

class Client {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0]);
        for (boolean chunked : new boolean[] {false, true}) {
            for (int i = 1; i < arguments.length; i += 2) {
                Path file = Path.of(arguments[i + 1]);
                BodyPublisher body = chunked
                    ? BodyPublishers.ofInputStream(() -> open(file))
                    : BodyPublishers.ofFile(file);
                HttpRequest request = HttpRequest.newBuilder(uri)
                    .header("Content-Type", arguments[i])
                    .POST(body)
                    .build();
                var response = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
                System.out.println(response.statusCode() + " " + response.body());
            }
        }
    }

    private static InputStream open(Path file) {
        try {
            return Files.newInputStream(file);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
